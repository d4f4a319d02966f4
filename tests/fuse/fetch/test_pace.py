"""How many background transfers run follows what the process can carry."""

from __future__ import annotations

from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey, scope_of
from fuse.fetch.blobs import BlobState
from fuse.fetch.pace import LEAST, Pace
from fuse.fetch.queue import Queue
from fuse.fetch.runs import Priority


def paced(pace: Pace, *, busy: float, times: int) -> Pace:
    for number in range(times):
        pace.sample(100 + number * 0.3, 50 + number * 0.3 * busy)
    return pace


def test_a_busy_process_carries_few_transfers() -> None:
    """On a near link more lanes only fight for the processor."""
    pace = paced(Pace(6), busy=1.2, times=5)

    assert LEAST == pace.lanes
    assert pace.saturated(101.3)
    assert not pace.saturated(110)


def test_an_idle_process_uses_every_lane() -> None:
    """On a far link each connection gives little: all of them are used, again after a busy time."""
    pace = paced(Pace(6), busy=1.2, times=5)
    for number in range(1, 8):
        pace.sample(102 + number * 0.3, 60 + number * 0.03)

    assert pace.lanes == 6
    assert not pace.saturated(104.2)


def test_one_lane_stays_one_lane() -> None:
    """Never more than the administrator allows."""
    assert paced(Pace(1), busy=1.2, times=5).lanes == 1


def test_background_runs_stay_within_their_limit_and_demand_does_not_wait() -> None:
    """The limit counts runs in flight; urgent wishes are served beside them."""
    blob = BlobState(BlobKey(Digest.of(b"x"), 400 * BLOCK_BYTES, scope_of("registry.example/m")))
    queue: Queue[BlobState] = Queue(4)
    queue.background_runs_limit = 2
    queue.want("owner", blob, 0, 400, Priority.BACKGROUND)
    runs = [queue.next_run(0.0, urgent_only=False) for _ in range(3)]

    assert [run is not None for run in runs] == [True, True, False]
    assert not queue.has_work(urgent_only=False)

    queue.want("owner", blob, 390, 1, Priority.DEMAND)
    demand = queue.next_run(0.0, urgent_only=False)
    assert demand is not None
    assert demand.priority is Priority.DEMAND

    assert runs[0] is not None
    queue.finish(runs[0])
    assert queue.has_work(urgent_only=False)
    assert queue.next_run(0.0, urgent_only=False) is not None
