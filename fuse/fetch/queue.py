"""What to fetch next: wishes in, runs of blocks out. A pure state machine; no thread, no clock, no disk, no registry.

An owner (a mount's session) wishes ranges of blocks at a priority. Wishes wait in one line per priority and owner, in the order
in which they came; owners take turns. `next_run` takes the head of the most urgent line and cuts it to what is neither present
nor in flight: the blocks of a `Run` are in flight in this run and in no other (single flight). What of a wish is in flight
already is *parked* on that run and goes back to the head of its line when the run ends, however it ends: so a wish leaves
the queue only when its blocks are present, its owner is gone, or its blob has failed. Nobody is forgotten.

A blob whose chunks are proven one by one has a `grain`: its runs begin and end at multiples of it (and at the blob's end), and
blocks that are present are fetched again where a chunk lacks another.

A demand that lies far behind the position of a long run cuts that run short, so that it is fetched at once.
The caller holds one lock around every call, and asks again whenever something was wished, released, or has ended.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic

from fuse.fetch.flight import Flight
from fuse.fetch.holds import Holds
from fuse.fetch.runs import NOBODY, B, Priority, Run, Wish, up
from fuse.fetch.shares import Shares

ALIGNED: Final = 4
"""Long runs end at multiples of so many blocks (what registries' caches and peer-to-peer pieces like)."""
FAR: Final = 4
"""A demand so many blocks behind a run's position does not wait for it."""
RUN_LIMITS: Final = (16, 16, 64)
"""The longest run of each priority, in blocks."""
LEAST_BACKGROUND: Final = 8
MOST_WISHES: Final = 100_000
"""A mount of that many files may wish each of them in the background, and no more."""
_LOOK: Final = 64
"""How many wishes are looked at to lengthen a run."""

Line = deque[Wish[B]]


class Queue(Generic[B]):
    def __init__(self, lanes: int = 6, shares: Shares | None = None) -> None:
        """`lanes`: among how many connections a long background wish is divided. `shares`: what one registry may take."""
        self.shares: Final = shares or Shares()
        self._lanes = max(1, lanes)
        self.only_demand = False
        """While the cache is full: nothing is fetched that nobody waits for."""
        self.background_limit = RUN_LIMITS[Priority.BACKGROUND]
        self.background_runs_limit: float = math.inf
        """How many background runs may be in flight."""
        self.background_trickles = False
        """While the link is the readers': one short background run at a time."""
        self._lines: tuple[dict[Hashable, Line[B]], ...] = ({}, {}, {})
        self._flight: Flight[B] = Flight()
        self._holds: Holds[B] = Holds()

    # ---- wishes ----

    def want(
        self, owner: Hashable, blob: B, first: int, count: int, priority: Priority, *, front: bool = False
    ) -> None:
        """Adds a wish for the blocks of the range that are not present; an indivisible blob is always wished whole.

        `front`: before what the owner wishes already at this priority, which may be the same blocks: those are passed over later.
        """
        end = min(first + count, blob.blocks)
        if blob.indivisible:
            first, end = 0, blob.blocks
        if first >= end:
            return
        line = self._line(owner, priority)
        if front:
            line.appendleft(Wish(owner, blob, first, end, priority))
            return
        last = line[-1] if line else None
        if last is not None and last.blob is blob and last.first <= first <= last.end:
            last.end = max(last.end, end)  # what is asked for again, or goes on, takes no room of its own
        else:
            line.append(Wish(owner, blob, first, end, priority))

    def crowded(self, owner: Hashable) -> bool:
        """Whether the owner has more wishes waiting than makes sense."""
        return any(len(lines.get(owner, ())) > MOST_WISHES for lines in self._lines)

    def drop_owner(self, owner: Hashable) -> None:
        """Forgets all wishes of an owner; its runs end early unless somebody else waits for their blocks."""
        for line in self._lines:
            line.pop(owner, None)
        self._holds.keep(lambda wish: wish.owner != owner)
        for run in list(self._flight):
            run.parked = [wish for wish in run.parked if wish.owner != owner]
            if run.owner == owner and run.whole and not run.parked:
                run.owner, run.end = NOBODY, run.next
            elif run.owner == owner and not run.whole:
                run.owner = NOBODY
                if run.blob.indivisible:
                    continue  # a part of it is good for nothing, and it covers all of the blob until it ends
                end = max([run.next + 1, *(wish.end for wish in run.parked)])
                self._cut(run, up(end, run.blob.grain), requeue=False)

    def forget(self, owner: Hashable, priority: Priority) -> None:
        """Forgets the owner's wishes of one priority, but for those that wait for a run."""
        self._lines[priority].pop(owner, None)
        self._holds.keep(lambda wish: wish.owner != owner or wish.priority is not priority)

    def drop_blob(self, blob: B, *, demand_only: bool) -> None:
        """Forgets the wishes for a blob that cannot be had; read-ahead and background may stay for a better day."""
        keep = Priority.READAHEAD if demand_only else len(Priority)

        def kept(wish: Wish[B]) -> bool:
            return wish.blob is not blob or wish.priority >= keep

        for lines in self._lines:
            for owner in list(lines):
                lines[owner] = deque(wish for wish in lines[owner] if kept(wish))
                if not lines[owner]:
                    del lines[owner]
        self._holds.keep(kept)
        for run in self._flight.of(blob):
            run.parked = [wish for wish in run.parked if kept(wish)]

    # ---- holding a blob back ----

    def hold(self, blob: B, until: float) -> None:
        """Starts no run of the blob before `until`."""
        self._holds.hold(blob, until)

    def release(self, blob: B) -> None:
        """Ends a hold at once."""
        self._requeue(self._holds.release(blob))

    def held_until(self, blob: B) -> float | None:
        return self._holds.until(blob)

    def due(self) -> float | None:
        """When the next hold with waiting wishes ends, or what was put off may start."""
        return min((when for when in (self._holds.due(), self.shares.due()) if when is not None), default=None)

    # ---- runs ----

    def has_work(self, *, urgent_only: bool) -> bool:
        """Whether `next_run` may find something; cheap, and sometimes wrong on the hopeful side only."""
        demand, readahead, background = self._lines
        if self.only_demand:
            return bool(demand)
        return bool(demand or readahead or (background and not urgent_only and self._may_start_background()))

    @property
    def holds_background(self) -> bool:
        """Whether something is wished in the background that no run has begun."""
        return bool(self._lines[Priority.BACKGROUND])

    def _may_start_background(self) -> bool:
        return self._flight.background < (1 if self.background_trickles else self.background_runs_limit)

    @property
    def running(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._flight)

    def next_run(self, now: float, *, urgent_only: bool) -> Run[B] | None:
        """The most urgent run, in flight from now on; None when there is nothing to do."""
        for blob in self._holds.over(now):
            self.release(blob)
        self.shares.end_pauses(now)
        served = 1 if self.only_demand else 2 if urgent_only or not self._may_start_background() else 3
        for priority in (Priority.DEMAND, Priority.READAHEAD, Priority.BACKGROUND)[:served]:
            lines = self._lines[priority]
            for owner in list(lines):
                registry = lines[owner][0].blob.registry  # an owner's blobs come from one
                if not self.shares.may_start(registry, urgent_lane=urgent_only):
                    continue
                if priority is not Priority.DEMAND and self.shares.is_put_off(registry):
                    continue
                run = self._from_line(lines[owner], priority)
                line = lines.pop(owner)
                if line:
                    lines[owner] = line  # behind the others: owners take turns
                if run is not None:
                    run.urgent_lane = urgent_only
                    self.shares.begin(run.blob.registry, urgent_lane=urgent_only)
                    self._flight.begin(run)
                    return run
        return None

    def arrived(self, run: Run[B], block: int) -> None:
        """`block`, the run's next one, is present (or was handed out in another way)."""
        run.next = block + 1

    def widen(self, run: Run[B]) -> bool:
        """The server ignores ranges and sends the blob from its start: lets this run take all of it.

        False when another run does so already: then this one is to end, what it was for waits for the other.
        """
        if any(other.whole for other in self._flight.of(run.blob)):
            return False
        if run.next > 0 or run.end < run.blob.blocks:
            # What it was started for is wished again, in case the stream ends before it comes there.
            run.parked.append(Wish(run.owner, run.blob, run.next, run.end, run.priority))
        run.whole = True
        run.first, run.next, run.end = 0, 0, run.blob.blocks
        return True

    def leave_background(self, least_blocks: int, may_leave: Callable[[], bool]) -> None:
        """Cuts the background runs that nobody waits for and that have so many blocks to go, as far as `may_leave` allows.

        Not those that rest: they take nothing from the link any more, and what their sockets hold would be lost.
        """
        for run in list(self._flight):
            if (
                run.priority is not Priority.BACKGROUND
                or run.urgent
                or run.resting
                or run.whole
                or run.blob.indivisible
            ):
                continue
            at = up(run.next + run.reading, run.blob.grain)
            if run.end - at >= least_blocks and may_leave():
                self._cut(run, at, requeue=True)

    def cut(self, run: Run[B], end: int) -> None:
        """Ends the run before `end`; what lies behind is wished again."""
        self._cut(run, end, requeue=True)

    def finish(self, run: Run[B]) -> None:
        """The run has ended; what it has not brought is wished again, at the head of its line."""
        self._flight.end(run)
        self.shares.end(run.blob.registry, urgent_lane=run.urgent_lane)
        rest = []
        if run.next < run.end and run.owner is not NOBODY and not run.whole:
            rest.append(Wish(run.owner, run.blob, run.next, run.end, run.priority))
        self._requeue([*rest, *run.parked])
        run.parked = []

    def in_flight(self, blob: B, block: int, *, besides: Run[B] | None = None) -> bool:
        """Whether some run (other than `besides`) is fetching the block."""
        return self._flight.covering(blob, block, besides=besides) is not None

    def should_yield(self, run: Run[B]) -> bool:
        """Whether a background run should leave the bandwidth to a reader that waits for another run."""
        return (
            (self._flight.demand > 0 or bool(self._lines[0])) and not run.urgent and run.priority is Priority.BACKGROUND
        )

    def runs(self) -> Iterator[Run[B]]:
        return iter(self._flight)

    def wishes(self) -> Iterator[Wish[B]]:
        """Everything that is waiting, wherever it waits."""
        for lines in self._lines:
            yield from itertools.chain.from_iterable(lines.values())
        yield from self._holds.wishes()
        for run in self._flight:
            yield from run.parked

    # ---- inside ----

    def _line(self, owner: Hashable, priority: Priority) -> Line[B]:
        return self._lines[priority].setdefault(owner, deque())

    def _requeue(self, wishes: list[Wish[B]]) -> None:
        for wish in reversed(wishes):
            self._line(wish.owner, wish.priority).appendleft(wish)

    def _from_line(self, line: Line[B], priority: Priority) -> Run[B] | None:
        while line:
            wish = line[0]
            blob = wish.blob
            if blob in self._holds:
                self._holds.add(line.popleft())
                continue
            wish.first = blob.first_absent(wish.first, wish.end)
            if wish.first >= wish.end:
                line.popleft()
                continue
            if (other := self._flight.covering(blob, wish.first)) is not None:
                self._park(wish, other, line)
                continue
            first = wish.first // blob.grain * blob.grain
            if (other := self._flight.touching(blob, first)) is not None:
                other.parked.append(line.popleft())
                continue
            end = self._reach(blob, wish.first, wish.end, self._limit(wish))
            end = self._lengthen(blob, wish.first, end, priority)
            run = Run(wish.owner, blob, first, end, priority)
            wish.first = end
            if wish.first >= wish.end:
                line.popleft()
            return run
        return None

    def _limit(self, wish: Wish[B]) -> int:
        if wish.priority is not Priority.BACKGROUND:
            return RUN_LIMITS[wish.priority]
        if self.background_trickles:
            return ALIGNED
        # A short rest is divided among the lanes, so that they end together.
        share = -(-(wish.end - wish.first) // self._lanes)
        return max(LEAST_BACKGROUND, min(self.background_limit, -(-share // ALIGNED) * ALIGNED))

    def _reach(self, blob: B, first: int, end: int, limit: int) -> int:
        """How far a run from `first` may go: to what is present, in flight, or too far."""
        if end - first > limit:
            end = max(first + 1, (first + limit) // ALIGNED * ALIGNED)
        grain = blob.grain
        end = min(up(blob.first_present(first, end), grain), blob.blocks)
        for other in self._flight.of(blob):
            if first < other.next < end:
                end = other.next // grain * grain
        return end

    def _lengthen(self, blob: B, first: int, end: int, priority: Priority) -> int:
        """The end of the run when the neighbours that others wish at the same priority are taken along."""
        if priority is Priority.BACKGROUND:
            return end
        limit = RUN_LIMITS[priority]
        lines = self._lines[priority].values()
        near = [
            wish
            for wish in itertools.islice(itertools.chain.from_iterable(lines), _LOOK)
            if wish.blob is blob and wish.end > end
        ]
        for wish in sorted(near, key=lambda wish: wish.first):
            if wish.first <= end < wish.end and end - first < limit and not self._flight.touching(blob, end):
                end = self._reach(blob, first, wish.end, limit)
        if priority is Priority.READAHEAD and end % ALIGNED and self._comes_anyway(blob, end):
            end = self._reach(blob, first, min(up(end, ALIGNED), blob.blocks), limit)
        return end

    def _comes_anyway(self, blob: B, block: int) -> bool:
        """Whether somebody wishes the block in the background: then it costs nothing to bring it now."""
        lines = self._lines[Priority.BACKGROUND].values()
        near = itertools.islice(itertools.chain.from_iterable(lines), _LOOK)
        return any(wish.blob is blob and wish.first <= block < wish.end for wish in near)

    def _park(self, wish: Wish[B], run: Run[B], line: Line[B]) -> None:
        """Lets the part of the head of `line` that is in flight wait for its run; or cuts a run that is too far from it."""
        demand = wish.priority is Priority.DEMAND
        can_be_cut = not run.whole and run.priority is not Priority.DEMAND and not run.blob.indivisible
        if demand and can_be_cut and wish.first - run.next > FAR:
            self._cut(run, wish.first // run.blob.grain * run.blob.grain, requeue=True)
            return
        run.urgent = run.urgent or demand
        end = wish.end if run.whole else min(run.end, wish.end)
        run.parked.append(Wish(wish.owner, wish.blob, wish.first, end, wish.priority))
        wish.first = end
        if wish.first >= wish.end:
            line.popleft()

    def _cut(self, run: Run[B], end: int, *, requeue: bool) -> None:
        if end >= run.end:
            return
        loose = [Wish(run.owner, run.blob, end, run.end, run.priority)] if requeue and run.owner is not NOBODY else []
        run.end = end
        stay: list[Wish[B]] = []
        for wish in run.parked:
            if wish.end <= end:
                stay.append(wish)
                continue
            loose.append(Wish(wish.owner, wish.blob, max(end, wish.first), wish.end, wish.priority))
            if wish.first < end:
                wish.end = end
                stay.append(wish)
        run.parked = stay
        self._requeue(loose)
