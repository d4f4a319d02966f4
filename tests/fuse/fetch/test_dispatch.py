"""Lanes that sleep are woken for what they can do, and for nothing that they cannot."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import pytest

from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.fetch.blobs import BlobState
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.queue import ALIGNED, LEAST_BACKGROUND
from fuse.fetch.runs import Priority, Run
from tests.support.fetcher import wait_until


class Lane(threading.Thread):
    """Takes runs and keeps them until told."""

    def __init__(self, dispatcher: Dispatcher, *, urgent_only: bool) -> None:
        super().__init__(daemon=True)
        self._dispatcher = dispatcher
        self._urgent_only = urgent_only
        self.taken: queue.Queue[Run[BlobState]] = queue.Queue()
        self.go_on = threading.Semaphore(0)

    def run(self) -> None:
        while (run := self._dispatcher.take(urgent_only=self._urgent_only)) is not None:
            self.taken.put(run)
            self.go_on.acquire()
            with self._dispatcher.lock:
                while run.next < run.end:
                    self._dispatcher.queue.arrived(run, run.next)
                self._dispatcher.finish_locked(run)


def idle(dispatcher: Dispatcher, urgent: int, general: int) -> bool:
    return (len(dispatcher._urgent), len(dispatcher._general)) == (urgent, general)


def blob(blocks: int, name: bytes = b"x") -> BlobState:
    return BlobState(BlobKey(Digest.of(name), blocks * BLOCK_BYTES, scope_of("registry.example/m")))


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(2)


def test_work_that_an_urgent_lane_cannot_do_is_passed_on(dispatcher: Dispatcher, tmp_path: Path) -> None:
    """An urgent lane woken for a wish that is fulfilled already wakes the lane that can do what else waits."""
    present, absent = blob(8), blob(8, b"y")
    writer = CacheStore(tmp_path).open(present.key)
    writer.index.publish(0, 1)
    present.adopt(writer)
    lanes = [Lane(dispatcher, urgent_only=True), Lane(dispatcher, urgent_only=False)]
    for lane in lanes:
        lane.start()
    wait_until(lambda: idle(dispatcher, 1, 1), "both lanes to sleep")
    with dispatcher.lock:
        dispatcher.queue.want("a", present, 0, 1, Priority.READAHEAD)
        dispatcher.queue.want("a", absent, 0, 8, Priority.BACKGROUND)
        dispatcher.kick_locked()

    assert lanes[1].taken.get(timeout=5).blob is absent
    lanes[1].go_on.release()
    dispatcher.close()
    for lane in lanes:
        lane.join(5)
    writer.close()


def test_one_wish_after_another_wakes_one_lane_each(dispatcher: Dispatcher) -> None:
    """As many lanes work as there is work for, though each kick wakes but one."""
    lanes = [Lane(dispatcher, urgent_only=number < 1) for number in range(4)]
    for lane in lanes:
        lane.start()
    wait_until(lambda: idle(dispatcher, 1, 3), "all lanes to sleep")
    blobs = [blob(8, bytes([number])) for number in range(4)]
    with dispatcher.lock:
        for number, wanted in enumerate(blobs):
            dispatcher.queue.want(number, wanted, 0, 1, Priority.DEMAND)
        dispatcher.kick_locked()

    assert {lane.taken.get(timeout=5).blob for lane in lanes} == set(blobs)
    for lane in lanes:
        lane.go_on.release()
    wait_until(lambda: idle(dispatcher, 1, 3), "all lanes to sleep again")
    dispatcher.close()
    for lane in lanes:
        lane.join(5)
        assert not lane.is_alive()


def test_the_lane_that_was_last_at_work_is_the_next(dispatcher: Dispatcher) -> None:
    """One reader's blocks, one after another, go over one connection, which is open."""
    lanes = [Lane(dispatcher, urgent_only=True) for _ in range(3)]
    for lane in lanes:
        lane.start()
    wait_until(lambda: idle(dispatcher, 3, 0), "all lanes to sleep")
    wanted, used = blob(8), []
    for block in range(6):
        with dispatcher.lock:
            dispatcher.queue.want("a", wanted, block, 1, Priority.DEMAND)
            dispatcher.kick_locked()
        wait_until(lambda: any(not lane.taken.empty() for lane in lanes), "a lane to take it", 5)
        lane = next(lane for lane in lanes if not lane.taken.empty())
        lane.taken.get()
        used.append(lane)
        lane.go_on.release()
        wait_until(lambda: idle(dispatcher, 3, 0), "it to sleep again")

    assert len(set(used)) == 1
    dispatcher.close()
    for lane in lanes:
        lane.join(5)


def test_a_hold_ends_by_itself(dispatcher: Dispatcher) -> None:
    """A lane that sleeps wakes when the blob may be tried again, without a kick."""
    held = blob(8)
    lane = Lane(dispatcher, urgent_only=False)
    with dispatcher.lock:
        dispatcher.queue.hold(held, time.monotonic() + 0.2)
        dispatcher.queue.want("a", held, 0, 1, Priority.DEMAND)
    began = time.monotonic()
    lane.start()

    assert lane.taken.get(timeout=5).blob is held
    assert 0.1 < time.monotonic() - began < 3
    lane.go_on.release()
    dispatcher.close()
    lane.join(5)


def test_a_lane_that_goes_to_work_leaves_a_hold_to_be_watched(dispatcher: Dispatcher) -> None:
    """The lane that was woken puts a held blob aside and takes another: a lane that sleeps already wakes when the hold ends."""
    held, free = blob(8), blob(8, b"y")
    lanes = [Lane(dispatcher, urgent_only=number < 1) for number in range(2)]
    for lane in lanes:
        lane.start()
    wait_until(lambda: idle(dispatcher, 1, 1), "both lanes to sleep")
    with dispatcher.lock:
        dispatcher.queue.hold(held, time.monotonic() + 0.2)
        dispatcher.queue.want("a", held, 0, 1, Priority.DEMAND)
        dispatcher.queue.want("a", free, 0, 1, Priority.DEMAND)
        dispatcher.kick_locked()

    wait_until(lambda: all(not lane.taken.empty() for lane in lanes), "both lanes to work", 5)
    assert {lane.taken.get().blob for lane in lanes} == {held, free}
    for lane in lanes:
        lane.go_on.release()
    dispatcher.close()
    for lane in lanes:
        lane.join(5)


def test_background_gives_way_for_a_while_only(dispatcher: Dispatcher) -> None:
    """While a reader waits a background run rests, no longer than it was told, and goes on when the reader is served."""
    dispatcher.queue.want("a", blob(4), 0, 4, Priority.BACKGROUND)
    background = dispatcher.take(urgent_only=False)
    assert background is not None
    dispatcher.queue.want("b", blob(8, b"y"), 0, 1, Priority.DEMAND)
    demand = dispatcher.take(urgent_only=True)
    assert demand is not None
    began = time.monotonic()
    dispatcher.give_way(background, 0.05)
    assert 0.04 < time.monotonic() - began < 2

    resting = threading.Thread(target=dispatcher.give_way, args=(background, 20))
    resting.start()
    with dispatcher.lock:
        dispatcher.queue.arrived(demand, 0)
        dispatcher.finish_locked(demand)
    resting.join(5)
    assert not resting.is_alive()


def test_a_reader_that_comes_has_background_requests_left(dispatcher: Dispatcher) -> None:
    """One that is not answered yet ends before its first block, and what it was for is wished again."""
    dispatcher.queue.want("a", blob(64), 0, 64, Priority.BACKGROUND)
    background = dispatcher.take(urgent_only=False)
    assert background is not None
    with dispatcher.lock:
        dispatcher.queue.want("b", blob(8, b"y"), 0, 1, Priority.DEMAND)
    demand = dispatcher.take(urgent_only=True)

    assert demand is not None
    assert background.next == background.end == 0
    assert sum(wish.end - wish.first for wish in dispatcher.queue.wishes()) == 64


def test_background_starts_again_when_the_link_is_free(dispatcher: Dispatcher) -> None:
    """A lane that was left asleep beside the trickle comes by itself when nobody reads any more, though the trickle hangs."""
    lanes = [Lane(dispatcher, urgent_only=False) for _ in range(2)]
    for lane in lanes:
        lane.start()
    wait_until(lambda: idle(dispatcher, 0, 2), "both lanes to sleep")
    with dispatcher.lock:
        dispatcher.queue.want("r", blob(8), 0, 1, Priority.DEMAND)
    demand = dispatcher.take(urgent_only=True)
    assert demand is not None
    with dispatcher.lock:
        dispatcher.queue.want("a", blob(64, b"y"), 0, 64, Priority.BACKGROUND)
        dispatcher.kick_locked()

    wait_until(lambda: all(not lane.taken.empty() for lane in lanes), "both lanes to work", 5)
    assert sorted(lane.taken.get().end for lane in lanes) == [ALIGNED, ALIGNED + LEAST_BACKGROUND]
    for lane in lanes:
        lane.go_on.release()
    dispatcher.close()
    for lane in lanes:
        lane.join(5)
