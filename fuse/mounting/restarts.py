"""How often a process had to be replaced, why the last time, and how soon the next one may start.

One a worker's mount, one a holder's fetcher, one its keeper. Callers tell the time, so that all of this can be tested without
waiting. Not thread-safe: whoever ends and starts the process calls it.
"""

from __future__ import annotations

from fuse.mounting.backoff import Backoff
from fuse.mounting.status import Restarts

_MOST_WORDS = 2000


class History:
    """The ends of one process and its successors."""

    def __init__(self) -> None:
        self._backoff = Backoff()
        self._since = 0.0
        self.told = Restarts()
        """For the status."""

    def started(self, now: float) -> None:
        """One serves since `now` (monotonic)."""
        self._backoff.started(now)

    def ended(self, now: float, wall: float, reason: str, last_words: str = "") -> float:
        """It ended, or could not be started, at `now` (monotonic) and `wall` (Unix time). Seconds to wait before the next."""
        pause_s = self._backoff.died(now)
        if self._backoff.deaths == 1:
            self._since = wall
        self.told = Restarts(
            count=self.told.count + 1, reason=reason, last_words=last_words.strip()[-_MOST_WORDS:], at=wall
        )
        return pause_s

    def loop(self, now: float) -> tuple[str, float] | None:
        """Why, and since when (Unix time), it keeps dying; None when it does not, or has served for long enough since."""
        if not self._backoff.looping(now):
            return None
        words = f"; its last words: {self.told.last_words.splitlines()[-1]}" if self.told.last_words else ""
        return f"{self._backoff.deaths} times in a row: it {self.told.reason}{words}", self._since
