"""Between the queue and the lanes: who sleeps, whom to wake, when to try again.

Owns the engine's one lock. A wake-up cannot be lost: a kick wakes one idle lane that could serve what waits, each lane that
took a run kicks again before it begins, and a lane for urgent work that finds none passes the word on to the others. Nor can
a deadline be: while there is one and a lane sleeps, one of those that sleep knows of it.
Methods whose name ends in `_locked` are called with the lock held; the others take it.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from fuse.fetch.blobs import BlobState
from fuse.fetch.courtesy import Courtesy
from fuse.fetch.pace import Pace
from fuse.fetch.pressure import Pressure
from fuse.fetch.queue import LEAST_BACKGROUND, RUN_LIMITS, Queue
from fuse.fetch.runs import Priority, Run
from fuse.fetch.shares import Shares
from fuse.fetch.sleepers import Sleepers
from fuse.fetch.trouble import FOREVER

_FULL_RECHECK_S: Final = 2.0
"""How long the cache is believed to be full before something is tried again."""
_LEFT_BLOCKS: Final = 4
"""A background run that has fewer to go when a reader comes is not worth a connection."""
_RUN_S: Final = 1.0
"""How long a background request should last: so long ones on a fast link, short ones on a slow one."""


class Dispatcher:
    def __init__(self, lanes: int, shares: Shares | None = None) -> None:
        """`lanes`: for all kinds of work; `shares`: what one registry may take of all."""
        self.lock: Final = threading.Lock()
        self.queue: Final[Queue[BlobState]] = Queue(lanes, shares)
        """Used with the lock held."""
        self.queue.background_limit = LEAST_BACKGROUND  # until something is known of the link: what is asked for comes
        self._pace = Pace(lanes)
        self._pressure = Pressure()
        self._courtesy = Courtesy()
        self._general = Sleepers(self.lock)
        self._urgent = Sleepers(self.lock)
        self._turn = threading.Condition(self.lock)
        self._full_until: float | None = None
        self.closed = False

    def close(self) -> None:
        """Makes every lane return from `take`; runs under way end at their next block."""
        with self.lock:
            self.closed = True
            self._general.wake_all()
            self._urgent.wake_all()
            self._turn.notify_all()

    # ---- lanes ----

    def take(self, *, urgent_only: bool) -> Run[BlobState] | None:
        """The next run for a lane; waits for one. None when all is over."""
        sleepers = self._urgent if urgent_only else self._general
        with self.lock:
            while not self.closed:
                now = time.monotonic()
                if self._full_until is not None and self._full_until <= now:
                    self.resume_ahead_locked()
                theirs_until = self._look_at_link_locked(now)
                run = self.queue.next_run(now, urgent_only=urgent_only)
                if run is not None:
                    self._begin_locked(run, now)
                    self.kick_locked()
                    self._pass_watch_locked()
                    return run
                if urgent_only and self._general and self.queue.has_work(urgent_only=False):
                    # Nothing for this lane after all; what is left is for the others.
                    self._general.wake()
                deadlines = [when for when in (self.queue.due(), self._full_until) if when is not None]
                if theirs_until and not urgent_only and self.queue.holds_background:
                    deadlines.append(theirs_until)
                deadline = min(deadlines, default=FOREVER)
                sleepers.sleep(max(0.0, deadline - now) if deadline < FOREVER else None)
        return None

    def _begin_locked(self, run: Run[BlobState], now: float) -> None:
        run.blob.references += 1
        run.at_s = now
        if run.priority is Priority.BACKGROUND:
            return
        self._courtesy.asked(now)
        if self._courtesy.until_s(now):
            self.queue.leave_background(_LEFT_BLOCKS, self._courtesy.may_leave)
            self._turn.notify_all()

    def _look_at_link_locked(self, now: float) -> float:
        """Until when, as it looks now, the background only trickles; 0.0: it does not."""
        until = self._courtesy.until_s(now)
        self.queue.background_trickles = until > 0
        return until

    def kick_locked(self) -> None:
        """Wakes one idle lane for what waits. Urgent work goes to its own lanes first: their connections are free and warm."""
        if self.queue.background_trickles:
            self._look_at_link_locked(time.monotonic())
        if self._urgent and self.queue.has_work(urgent_only=True):
            self._urgent.wake()
        elif self._general and self.queue.has_work(urgent_only=False):
            self._general.wake()

    def _pass_watch_locked(self) -> None:
        """A lane that goes to work may be the only one that knew when something is to be tried again: another one looks."""
        if self._full_until is not None or self.queue.due() is not None:
            (self._urgent or self._general).wake()
        elif self.queue.background_trickles and self.queue.holds_background:
            self._general.wake()

    def finish_locked(self, run: Run[BlobState]) -> None:
        """The lane has left the run; what is missing of it goes back into the queue."""
        self.queue.finish(run)
        self._turn.notify_all()
        self.kick_locked()

    # ---- runs under way ----

    def widen(self, run: Run[BlobState]) -> bool:
        with self.lock:
            return self.queue.widen(run)

    def shorten(self, run: Run[BlobState], blocks: int) -> None:
        """Only so many blocks will come; the rest is wished again."""
        with self.lock:
            self.queue.cut(run, run.next + blocks)
            self.kick_locked()

    def skip(self, run: Run[BlobState], block: int) -> None:
        """Passes over a block that is there already, or on its way in another run."""
        with self.lock:
            self.queue.arrived(run, block)

    def fetched_elsewhere(self, run: Run[BlobState], block: int) -> bool:
        with self.lock:
            return self.queue.in_flight(run.blob, block, besides=run)

    def arrived_locked(self, run: Run[BlobState], block: int, now: float) -> None:
        """The run's next block has come over the link."""
        self.queue.arrived(run, block)
        if run.priority is not Priority.BACKGROUND:
            self._courtesy.served(now, now - run.at_s)
        self._courtesy.came(run.waiting_bytes)
        run.at_s = now

    def give_way(self, run: Run[BlobState], longest_s: float) -> bool:
        """Lets a background run rest while a reader waits for another one, or the link is a reader's. Whether it did."""
        if not self._rest_until(run, time.monotonic()):  # a glance without the lock: it is looked at again with it
            return False
        with self.lock:
            now = time.monotonic()
            longest = now + longest_s
            run.resting = True
            while run.next < run.end and not self.closed and (until := min(longest, self._rest_until(run, now))) > now:
                self._turn.wait(until - now)
                now = time.monotonic()
            run.resting = False
        return True

    def _rest_until(self, run: Run[BlobState], now: float) -> float:
        """Until when, as it looks now; 0.0: it need not."""
        if run.urgent:
            return 0.0
        return FOREVER if self.queue.should_yield(run) else self._courtesy.until_s(now)

    def note_speed(self, seconds_per_block: float) -> None:
        """Sizes background requests after the link, and their number after what this process can carry."""
        blocks = int(_RUN_S / max(seconds_per_block, 0.001)) // 4 * 4
        with self.lock:
            self.queue.background_limit = max(LEAST_BACKGROUND, min(RUN_LIMITS[Priority.BACKGROUND], blocks))
            now = time.monotonic()
            self._pace.sample(now, time.process_time())
            self.queue.background_runs_limit = 1 if self._pressure.is_short(now) else self._pace.lanes
            self.kick_locked()

    @property
    def busy(self) -> bool:
        """Whether anything is being fetched."""
        with self.lock:
            return self.queue.running

    @property
    def crowded(self) -> bool:
        """Whether transfers are under way that the processor, not the link, holds up."""
        with self.lock:
            return self._pace.saturated(time.monotonic()) and self.queue.running

    # ---- a full cache ----

    @property
    def only_demand(self) -> bool:
        return self.queue.only_demand

    def pause_ahead_locked(self) -> None:
        """The cache is full: for a while only what readers wait for is fetched."""
        self._full_until = time.monotonic() + _FULL_RECHECK_S
        self.queue.only_demand = True

    def resume_ahead_locked(self) -> None:
        """Something may have been freed: what is ahead of readers is tried again, and finds out."""
        if self._full_until is None:
            return
        self._full_until = None
        self.queue.only_demand = False
        self.kick_locked()
