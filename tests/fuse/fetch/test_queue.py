"""The queue against a model: sets of blocks that are wanted, in flight and present."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.fetch.queue import ALIGNED, FAR, LEAST_BACKGROUND, RUN_LIMITS, Queue
from fuse.fetch.runs import Priority, Run
from fuse.fetch.shares import LaneCounts, Shares

DEMAND, READAHEAD, BACKGROUND = Priority.DEMAND, Priority.READAHEAD, Priority.BACKGROUND


class FakeBlob:
    """Presence as a set."""

    def __init__(self, blocks: int, *, indivisible: bool = False, registry: str = "one", grain: int = 1) -> None:
        self.registry = registry
        self.blocks = blocks
        self.grain = grain
        self.indivisible = indivisible
        self.present: set[int] = set()

    def first_absent(self, first: int, end: int) -> int:
        if self.indivisible:
            return end if len(self.present) == self.blocks else first
        return next((block for block in range(first, end) if block not in self.present), max(first, end))

    def first_present(self, first: int, end: int) -> int:
        if self.indivisible:
            return end
        return next((block for block in range(first, end) if block in self.present), max(first, end))


def bring(queue: Queue[FakeBlob], run: Run[FakeBlob], count: int | None = None) -> None:
    """The run's next blocks arrive."""
    while run.next < run.end and (count is None or count > 0):
        # As a lane does: a stream of the whole passes over what another run is bringing.
        if not (run.whole and queue.in_flight(run.blob, run.next, besides=run)):
            run.blob.present.add(run.next)
        queue.arrived(run, run.next)
        count = None if count is None else count - 1


def take(queue: Queue[FakeBlob], *, urgent_only: bool = False, now: float = 0.0) -> Run[FakeBlob]:
    run = queue.next_run(now, urgent_only=urgent_only)
    assert run is not None
    return run


def drain(queue: Queue[FakeBlob]) -> list[tuple[Any, int, int]]:
    """Runs everything that is left, one after the other; what was fetched."""
    fetched = []
    while (run := queue.next_run(1e9, urgent_only=False)) is not None:
        first = run.next
        bring(queue, run)
        fetched.append((run.blob, first, run.end))
        queue.finish(run)
        assert len(fetched) < 10_000, "runs without end"
    return fetched


blob_numbers = st.sampled_from((0, 0, 0, 1, 2))
wants = st.tuples(
    st.just("want"),
    st.integers(0, 2),
    blob_numbers,
    st.integers(0, 99),
    st.sampled_from((1, 2, 5, 30, 100)),
    st.sampled_from(Priority),
)
takes = st.tuples(st.just("take"), st.booleans())
arrivals = st.tuples(st.just("arrive"), st.integers(0, 9), st.integers(1, 20))
finishes = st.tuples(st.just("finish"), st.integers(0, 9))
rare = st.one_of(
    st.tuples(st.just("hold"), blob_numbers, st.integers(0, 20)),
    st.tuples(st.just("release"), blob_numbers),
    st.tuples(st.just("drop"), st.integers(0, 2)),
    st.tuples(st.just("widen"), st.integers(0, 9)),
    st.tuples(st.just("forget"), blob_numbers, st.integers(0, 99)),
    st.tuples(st.just("fail"), blob_numbers),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("leave"), st.integers(1, 9), st.booleans()),
)
# Wishing and taking are the usual thing: scripts of nothing but rarities never get two runs into each other's way.
operations = st.lists(st.one_of(wants, takes, wants, takes, arrivals, finishes, rare), min_size=8, max_size=60)


@settings(max_examples=400, deadline=None)
@given(operations)
def test_nothing_is_fetched_twice_at_once_and_nobody_is_forgotten(script: list[Any]) -> None:
    """Whatever happens, in-flight runs are disjoint and absent, and what is wanted can be reached by running on."""
    blobs = [FakeBlob(100), FakeBlob(37), FakeBlob(3, indivisible=True)]
    queue: Queue[FakeBlob] = Queue(3)
    runs: list[Run[FakeBlob]] = []
    wanted: dict[int, set[tuple[int, int]]] = {0: set(), 1: set(), 2: set()}
    now = 0.0

    def check() -> None:
        for blob in blobs:
            covered = Counter(
                block for run in runs if run.blob is blob and not run.whole for block in range(run.next, run.end)
            )
            assert not covered or max(covered.values()) == 1
            if not blob.indivisible:
                assert not set(covered) & blob.present
        for owner, blocks in wanted.items():
            outstanding = {
                (blobs.index(wish.blob), block)
                for wish in queue.wishes()
                if wish.owner == owner
                for block in range(wish.first, wish.end)
            }
            # A run that started for this owner brings its blocks; one that is cut gives them back.
            outstanding |= {
                (blobs.index(run.blob), block)
                for run in runs
                if run.owner == owner
                for block in range(run.next, run.end)
            }
            for number, block in blocks:
                if block not in blobs[number].present:
                    assert (number, block) in outstanding, (owner, number, block)

    for operation in script:
        match operation:
            case ("want", owner, number, first, count, priority):
                queue.want(owner, blobs[number], first, count, priority)
                blocks = range(first, min(first + count, blobs[number].blocks))
                if blobs[number].indivisible and blocks:
                    blocks = range(blobs[number].blocks)
                wanted[owner] |= {(number, block) for block in blocks}
            case ("take", urgent_only):
                now += 1
                run = queue.next_run(now, urgent_only=urgent_only)
                if run is not None:
                    assert run.first < run.end
                    assert not (urgent_only and run.priority is BACKGROUND)
                    assert not (queue.only_demand and run.priority is not DEMAND)
                    assert not any(other.whole and other.blob is run.blob for other in runs)
                    runs.append(run)
            case ("arrive", which, count) if runs:
                bring(queue, runs[which % len(runs)], count)
            case ("finish", which) if runs:
                queue.finish(runs.pop(which % len(runs)))
            case ("hold", number, seconds):
                queue.hold(blobs[number], now + seconds)
            case ("release", number):
                queue.release(blobs[number])
            case ("drop", owner):
                queue.drop_owner(owner)
                wanted[owner] = set()
            case ("widen", which) if runs:
                run = runs[which % len(runs)]
                if not run.blob.indivisible and not run.whole and not queue.widen(run):
                    queue.finish(run)
                    runs.remove(run)
            case ("forget", number, block):
                blob = blobs[number]
                # As the engine does: nobody forgets what is in flight, and the blocks that were had are not wanted any more.
                if block in blob.present and not queue.in_flight(blob, block):
                    blob.present.discard(block)
                    for blocks_of_owner in wanted.values():
                        blocks_of_owner.discard((number, block))
            case ("fail", number):
                queue.drop_blob(blobs[number], demand_only=False)
                for run in [run for run in runs if run.blob is blobs[number]]:
                    run.end = run.next
                    queue.finish(run)
                    runs.remove(run)
                for owner, blocks_of_owner in wanted.items():
                    wanted[owner] = {item for item in blocks_of_owner if item[0] != number}
            case ("full", full):
                queue.only_demand = full
            case ("leave", least, trickles):
                for run in runs:
                    run.reading, run.resting = trickles, trickles and not least % 3
                queue.leave_background(least, lambda: True)
                queue.background_trickles = trickles
        check()

    queue.only_demand = queue.background_trickles = False
    for blob in blobs:
        queue.release(blob)
    for run in runs:
        bring(queue, run, 1)
        queue.finish(run)
    drain(queue)
    assert all(block in blobs[number].present for blocks in wanted.values() for number, block in blocks)
    assert not list(queue.wishes())
    assert not list(queue.runs())


def test_demand_comes_before_readahead_before_background() -> None:
    """Priorities rule over the order of arrival and over owners."""
    queue: Queue[FakeBlob] = Queue()
    a, b, c = FakeBlob(10), FakeBlob(10), FakeBlob(10)
    queue.want(1, a, 0, 10, BACKGROUND)
    queue.want(2, b, 0, 10, READAHEAD)
    queue.want(3, c, 4, 2, DEMAND)

    assert [blob for blob, _, _ in drain(queue)] == [c, b, a, a]


def test_urgent_lanes_leave_background_alone() -> None:
    """Connections that are kept for readers do not take background runs."""
    queue: Queue[FakeBlob] = Queue()
    queue.want(1, FakeBlob(10), 0, 10, BACKGROUND)

    assert queue.next_run(0, urgent_only=True) is None
    assert queue.next_run(0, urgent_only=False) is not None


def test_neighbouring_demands_share_a_request() -> None:
    """READs of several readers that touch are one ranged GET."""
    queue: Queue[FakeBlob] = Queue()
    blob = FakeBlob(100)
    for owner, block in ((1, 3), (2, 4), (1, 5), (1, 50)):
        queue.want(owner, blob, block, 1, DEMAND)
    run = take(queue)

    assert (run.first, run.end) == (3, 6)
    other = take(queue)
    assert (other.first, other.end) == (50, 51)


def test_a_far_demand_cuts_a_long_run() -> None:
    """A block at the end of a long background run is fetched at once, and the rest is not lost."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(64)
    queue.want(1, blob, 0, 64, BACKGROUND)
    long = take(queue)
    bring(queue, long, 2)
    queue.want(2, blob, 40, 1, DEMAND)
    short = take(queue, urgent_only=True)

    assert (short.first, short.end) == (40, 41)
    assert long.end == 40
    bring(queue, short)
    queue.finish(short)
    bring(queue, long)
    queue.finish(long)
    drain(queue)
    assert blob.present == set(range(64))


def test_a_near_demand_waits_for_the_run_that_brings_it() -> None:
    """What comes in a moment anyway is not asked for twice; the run becomes urgent."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(64)
    queue.want(1, blob, 0, 64, BACKGROUND)
    long = take(queue)
    queue.want(2, blob, FAR, 1, DEMAND)

    assert queue.next_run(0, urgent_only=True) is None
    assert long.urgent
    assert long.end == 64
    assert not queue.should_yield(long)


def test_background_yields_to_readers() -> None:
    """While a reader waits for another run, background runs are told to rest."""
    queue: Queue[FakeBlob] = Queue(1)
    a, b = FakeBlob(64), FakeBlob(64)
    queue.want(1, a, 0, 64, BACKGROUND)
    background = take(queue)
    assert not queue.should_yield(background)
    queue.want(2, b, 0, 1, DEMAND)
    assert queue.should_yield(background)
    demand = take(queue)
    assert queue.should_yield(background)
    bring(queue, demand)
    queue.finish(demand)

    assert not queue.should_yield(background)


def test_background_runs_are_left_where_that_is_worth_it() -> None:
    """Each ends with its block, or before the first while there is no answer; what is short, rests, or is waited for, goes on."""
    queue: Queue[FakeBlob] = Queue(1)
    _reading, asking, at_rest, _short, awaited = blobs = [FakeBlob(8 if number == 3 else 64) for number in range(5)]
    for blob in blobs:
        queue.want(1, blob, 0, blob.blocks, BACKGROUND)
    runs = {run.blob: run for run in (take(queue) for _ in blobs)}
    for blob in blobs:
        bring(queue, runs[blob], 5)
    for blob in blobs:
        runs[blob].reading = blob is not asking
    runs[at_rest].resting = True
    queue.want(2, awaited, 6, 1, DEMAND)
    assert queue.next_run(0, urgent_only=True) is None
    queue.leave_background(4, lambda: True)

    assert [runs[blob].end for blob in blobs] == [6, 5, 64, 8, 64]
    for run in runs.values():
        bring(queue, run)
        queue.finish(run)
    drain(queue)
    assert all(blob.present == set(range(blob.blocks)) for blob in blobs)


def test_no_more_runs_are_left_than_may_be() -> None:
    """Each one is asked for, and none is after a refusal."""
    queue: Queue[FakeBlob] = Queue(1)
    allowed = iter([True, False, False])
    for owner in range(3):
        queue.want(owner, FakeBlob(64), 0, 64, BACKGROUND)
    runs = [take(queue) for _ in range(3)]
    ends = [run.end for run in runs]
    queue.leave_background(4, lambda: next(allowed))

    assert [run.end for run in runs] == [0, *ends[1:]]


def test_a_run_of_chunks_is_left_between_two_of_them() -> None:
    """What is proven in fours is not left with two."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(64, grain=4)
    queue.want(1, blob, 0, 64, BACKGROUND)
    run = take(queue)
    bring(queue, run, 5)
    queue.leave_background(4, lambda: True)

    assert run.end == 8


def test_while_the_link_is_the_readers_the_background_trickles() -> None:
    """One short run at a time, and none beside one that is under way; afterwards as before."""
    queue: Queue[FakeBlob] = Queue(4)
    queue.background_limit = LEAST_BACKGROUND
    queue.want(1, FakeBlob(200), 0, 200, BACKGROUND)
    queue.background_trickles = True
    trickle = take(queue)
    assert trickle.end - trickle.first == ALIGNED
    assert queue.next_run(0, urgent_only=False) is None
    assert not queue.has_work(urgent_only=False)
    assert queue.holds_background
    queue.background_trickles = False

    other = take(queue)
    assert other.end - other.first == LEAST_BACKGROUND


def test_owners_take_turns() -> None:
    """Two mounts share the lanes, however much one of them wants."""
    queue: Queue[FakeBlob] = Queue()
    a, b = FakeBlob(1000), FakeBlob(1000)
    queue.want(1, a, 0, 1000, BACKGROUND)
    queue.want(2, b, 0, 1000, BACKGROUND)

    assert [take(queue).blob for _ in range(6)] == [a, b, a, b, a, b]


def test_runs_keep_to_their_limits_and_alignment() -> None:
    """Long runs end at multiples of 4 blocks and are no longer than their priority allows."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(1000)
    queue.want(1, blob, 3, 997, READAHEAD)
    queue.want(1, blob, 3, 997, BACKGROUND)
    first = take(queue)
    fetched = [(first.first, first.end)]
    bring(queue, first)
    queue.finish(first)
    fetched += [(start, end) for _, start, end in drain(queue)]

    assert all(end % 4 == 0 for _, end in fetched[:-1])
    assert all(end - start <= max(RUN_LIMITS) for start, end in fetched)
    assert fetched[0] == (3, 16)


def test_what_is_read_ahead_ends_at_a_piece_where_the_rest_comes_anyway() -> None:
    """A window of any length is fetched up to a multiple of 4 blocks, if those behind it are wished in the background."""
    queue: Queue[FakeBlob] = Queue(1)
    alone, whole = FakeBlob(100), FakeBlob(100)
    queue.want(1, alone, 3, 6, READAHEAD)
    queue.want(2, whole, 3, 6, READAHEAD)
    queue.want(3, whole, 0, 100, BACKGROUND)

    assert [(run.blob, run.first, run.end) for run in (take(queue), take(queue))] == [(alone, 3, 9), (whole, 3, 12)]


def test_a_registry_that_is_put_off_is_asked_for_readers_only() -> None:
    """Another registry goes on, and what was put off begins by itself when the time has come."""
    queue: Queue[FakeBlob] = Queue(1)
    late, other = FakeBlob(100), FakeBlob(8, registry="two")
    for owner, blob, priority in ((1, late, READAHEAD), (2, late, BACKGROUND), (3, other, BACKGROUND)):
        queue.want(owner, blob, 0, 8, priority)
    queue.want(4, late, 50, 1, DEMAND)
    queue.shares.put_off("one", 5.0)

    assert [(run.blob, run.priority) for run in (take(queue), take(queue))] == [(late, DEMAND), (other, BACKGROUND)]
    assert queue.next_run(4.9, urgent_only=False) is None
    assert queue.due() == 5.0
    assert take(queue, now=5.0).priority is READAHEAD
    assert queue.due() is None


def test_order_of_background_is_the_order_of_wishing() -> None:
    """A worker wishes in the order in which loaders read, and that is the order of the fetch."""
    queue: Queue[FakeBlob] = Queue(1)
    blobs = [FakeBlob(8) for _ in range(5)]
    for blob in blobs:
        queue.want(1, blob, 0, 8, BACKGROUND)

    assert [blob for blob, _, _ in drain(queue)] == blobs


def test_held_blobs_wait_and_others_go_on() -> None:
    """A registry that is down for one blob delays no other; the hold ends by itself."""
    queue: Queue[FakeBlob] = Queue()
    a, b = FakeBlob(1), FakeBlob(1)
    queue.hold(a, 5.0)
    queue.want(1, a, 0, 1, DEMAND)
    queue.want(1, b, 0, 1, BACKGROUND)

    assert take(queue).blob is b
    assert queue.next_run(4.9, urgent_only=False) is None
    assert queue.due() == 5.0
    assert take(queue, now=5.0).blob is a


def test_a_run_of_a_small_blob_is_not_cut_when_its_owner_goes() -> None:
    """It goes on for whoever wishes the blob next. Cut, it covered blocks that it did not bring: parking never came to an end."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(3, indivisible=True)
    queue.want(1, blob, 0, 3, DEMAND)
    run = take(queue)
    queue.drop_owner(1)
    queue.want(2, blob, 0, 3, DEMAND)

    assert queue.next_run(1.0, urgent_only=False) is None
    assert (run.next, run.end) == (0, 3)
    bring(queue, run)
    queue.finish(run)
    assert queue.next_run(2.0, urgent_only=False) is None
    assert not list(queue.wishes())


def test_a_run_without_owner_ends_early() -> None:
    """When a mount goes, its background run stops at the next block, unless somebody waits further on."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(64)
    queue.want(1, blob, 0, 64, BACKGROUND)
    run = take(queue)
    queue.want(2, blob, 3, 2, READAHEAD)
    assert queue.next_run(0, urgent_only=True) is None
    queue.drop_owner(1)
    assert run.end == 5
    queue.drop_owner(2)
    bring(queue, run)
    queue.finish(run)

    assert not list(queue.wishes())


def test_a_run_ends_where_another_one_begins() -> None:
    """A long wish around a block that is in flight already is fetched before and behind it only."""
    queue: Queue[FakeBlob] = Queue(1)
    blob = FakeBlob(32)
    queue.want(1, blob, 10, 2, DEMAND)
    middle = take(queue)
    queue.want(2, blob, 0, 32, BACKGROUND)
    before = take(queue)
    behind = take(queue)

    assert [(run.next, run.end) for run in (before, middle, behind)] == [(0, 10), (10, 12), (12, 32)]


def test_indivisible_blob_is_never_asked_for_in_part() -> None:
    """While its blocks are lent one by one, another reader's wish waits for the run, and is for the whole again."""
    queue: Queue[FakeBlob] = Queue()
    blob = FakeBlob(4, indivisible=True)
    queue.want("a", blob, 0, 4, DEMAND)
    lending = take(queue)
    queue.arrived(lending, 0)
    queue.arrived(lending, 1)
    queue.want("b", blob, 0, 4, DEMAND)
    assert queue.next_run(0.0, urgent_only=False) is None
    queue.finish(lending)
    run = take(queue)
    assert (0, 4) == (run.next, run.end)


def test_one_registry_leaves_a_lane_to_the_others() -> None:
    """However much it is asked for, a registry has its share of lanes; in trouble, less, until a byte of it comes."""
    queue: Queue[FakeBlob] = Queue(2, Shares(LaneCounts(urgent=1, general=2)))
    hanging = [FakeBlob(8) for _ in range(9)]
    for blob in hanging:
        queue.want("a", blob, 0, 8, DEMAND)
    runs = [take(queue), take(queue), take(queue, urgent_only=True)]
    assert queue.next_run(0.0, urgent_only=False) is None
    assert queue.next_run(0.0, urgent_only=True) is None
    other = FakeBlob(8, registry="two")
    queue.want("b", other, 0, 8, DEMAND)
    assert take(queue).blob is other

    queue.shares.failed("one")
    queue.finish(runs[0])
    assert queue.next_run(0.0, urgent_only=False) is None
    queue.shares.worked("one")
    assert take(queue).blob.registry == "one"


@given(st.lists(st.tuples(st.sampled_from("bfwe"), st.sampled_from("xyz"), st.booleans()), max_size=60))
def test_shares_are_kept_whatever_happens(operations: list[tuple[str, str, bool]]) -> None:
    """Never more than the share, never none for a registry that has no lane; what has ended is forgotten."""
    shares = Shares(LaneCounts(urgent=2, general=3))
    model: Counter[tuple[str, bool]] = Counter()
    for operation, registry, urgent in operations:
        may = shares.may_start(registry, urgent_lane=urgent)
        taken = model[registry, urgent]
        assert not may or taken < (2 if urgent else 3)
        assert may or taken
        if operation == "b" and may:
            shares.begin(registry, urgent_lane=urgent)
            model[registry, urgent] += 1
        elif operation == "e" and taken:
            shares.end(registry, urgent_lane=urgent)
            model[registry, urgent] -= 1
        elif operation == "f":
            shares.failed(registry)
        elif operation == "w":
            shares.worked(registry)
            assert shares.may_start(registry, urgent_lane=urgent) == (taken < (2 if urgent else 3))


@given(
    st.lists(st.tuples(st.integers(0, 36), st.integers(1, 20), st.sampled_from(Priority)), min_size=1, max_size=8),
    st.sets(st.integers(0, 36)),
    st.integers(0, 3),
)
def test_runs_of_a_blob_with_a_grain_cover_whole_chunks(
    asked: list[tuple[int, int, Priority]], present: set[int], begun: int
) -> None:
    """Whatever is wished, and also where runs were begun before the blob had its grain: all that is wished comes."""
    blob = FakeBlob(37)
    blob.present |= present
    queue: Queue[FakeBlob] = Queue()
    for number, (first, count, priority) in enumerate(asked):
        queue.want(number, blob, first, count, priority)
    earlier = [run for _ in range(begun) if (run := queue.next_run(0.0, urgent_only=False)) is not None]
    blob.grain = 4
    later = []
    while (run := queue.next_run(0.0, urgent_only=False)) is not None:
        later.append(run)
        assert len(later) <= blob.blocks, "runs without end"
        taken = [set(range(other.next, other.end)) for other in (*earlier, *later)]
        assert sum(map(len, taken)) == len(set().union(*taken))
    for run in earlier:
        queue.finish(run)
    for run in later:
        assert run.first % 4 == 0
        assert run.end % 4 == 0 or run.end == 37
        bring(queue, run)
        queue.finish(run)
    for _, first, end in drain(queue):
        assert first % 4 == 0
        assert end % 4 == 0 or end == 37
    for first, count, _ in asked:
        assert set(range(first, min(first + count, 37))) <= blob.present


def test_what_a_load_has_come_to_goes_before_what_was_wished() -> None:
    """The last that was put in front first; its blocks are fetched once, other owners and priorities as ever."""
    queue: Queue[FakeBlob] = Queue(1)
    one, two = FakeBlob(24), FakeBlob(24)
    queue.want(1, one, 0, 24, BACKGROUND)
    queue.want(1, two, 0, 24, BACKGROUND)
    queue.want(1, two, 0, 8, BACKGROUND, front=True)
    queue.want(1, two, 8, 16, BACKGROUND, front=True)
    queue.want(1, one, 20, 1, READAHEAD)
    fetched = drain(queue)

    assert [(one, 20), (two, 8), (two, 0), (one, 0)] == [(blob, first) for blob, first, _ in fetched][:4]
    assert 48 == sum(end - first for _, first, end in fetched)
