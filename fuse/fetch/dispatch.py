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
from fuse.fetch.pace import Pace
from fuse.fetch.pressure import Pressure
from fuse.fetch.queue import LEAST_BACKGROUND, RUN_LIMITS, Priority, Queue, Run
from fuse.fetch.shares import Shares
from fuse.fetch.trouble import FOREVER

_FULL_RECHECK_S: Final = 2.0
"""How long the cache is believed to be full before something is tried again."""
_RUN_S: Final = 1.0
"""How long a background request should last: so long ones on a fast link, short ones on a slow one."""


class Dispatcher:
    def __init__(self, lanes: int, shares: Shares | None = None) -> None:
        """`lanes`: for all kinds of work; `shares`: what one registry may take of all."""
        self.lock: Final = threading.Lock()
        self.queue: Final[Queue[BlobState]] = Queue(lanes, shares)
        """Used with the lock held."""
        self._pace = Pace(lanes)
        self._pressure = Pressure()
        self._general = threading.Condition(self.lock)
        self._urgent = threading.Condition(self.lock)
        self._turn = threading.Condition(self.lock)
        self._idle_general = 0
        self._idle_urgent = 0
        self._full_until: float | None = None
        self.closed = False

    def close(self) -> None:
        """Makes every lane return from `take`; runs under way end at their next block."""
        with self.lock:
            self.closed = True
            for condition in (self._general, self._urgent, self._turn):
                condition.notify_all()

    # ---- lanes ----

    def take(self, *, urgent_only: bool) -> Run[BlobState] | None:
        """The next run for a lane; waits for one. None when all is over."""
        condition = self._urgent if urgent_only else self._general
        with self.lock:
            while not self.closed:
                now = time.monotonic()
                if self._full_until is not None and self._full_until <= now:
                    self.resume_ahead_locked()
                run = self.queue.next_run(now, urgent_only=urgent_only)
                if run is not None:
                    run.blob.references += 1
                    self.kick_locked()
                    self._pass_watch_locked()
                    return run
                if urgent_only and self._idle_general and self.queue.has_work(urgent_only=False):
                    # Nothing for this lane after all; what is left is for the others.
                    self._general.notify()
                deadlines = [when for when in (self.queue.due(), self._full_until) if when is not None]
                deadline = min(deadlines, default=FOREVER)
                self._count_idle(1, urgent_only=urgent_only)
                condition.wait(max(0.0, deadline - now) if deadline < FOREVER else None)
                self._count_idle(-1, urgent_only=urgent_only)
        return None

    def _count_idle(self, change: int, *, urgent_only: bool) -> None:
        if urgent_only:
            self._idle_urgent += change
        else:
            self._idle_general += change

    def kick_locked(self) -> None:
        """Wakes one idle lane for what waits. Urgent work goes to its own lanes first: their connections are free and warm."""
        if self._idle_urgent and self.queue.has_work(urgent_only=True):
            self._urgent.notify()
        elif self._idle_general and self.queue.has_work(urgent_only=False):
            self._general.notify()

    def _pass_watch_locked(self) -> None:
        """A lane that goes to work may be the only one that knew when something is to be tried again: another one looks."""
        if self._full_until is not None or self.queue.due() is not None:
            (self._urgent if self._idle_urgent else self._general).notify()

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

    def give_way(self, run: Run[BlobState], longest_s: float) -> None:
        """Lets a background run rest while a reader waits for another one."""
        if not self.queue.should_yield(run):  # a glance without the lock: it is looked at again with it
            return
        with self.lock:
            self._turn.wait_for(lambda: self.closed or not self.queue.should_yield(run), longest_s)

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
