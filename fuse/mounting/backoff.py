"""How soon a worker that died is replaced. Pure: the caller tells the time."""

from __future__ import annotations

from typing import Final

_AT_ONCE: Final = 5
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_SERVICE_S: Final = 10.0
_LONGEST_EXPONENT: Final = 16


class Backoff:
    """Five replacements at once, then pauses that double up to 5 s, for ever; ten seconds of service start it over."""

    def __init__(self) -> None:
        self._deaths = 0
        self._started_at: float | None = None
        self._first_death_at = 0.0

    def looping_since(self, now: float) -> float | None:
        """When the deaths began that came too fast for replacements at once; None while there is no such series.

        A series is over when a worker has served for ten seconds.
        """
        served_s = now - self._started_at if self._started_at is not None else 0.0
        return self._first_death_at if self._deaths > _AT_ONCE and served_s < _SERVICE_S else None

    @property
    def deaths(self) -> int:
        """Of the last series."""
        return self._deaths

    def started(self, now: float) -> None:
        """A worker serves since `now`."""
        self._started_at = now

    def died(self, now: float) -> float:
        """Seconds to wait before the next start, after a death or a start that failed."""
        if self._started_at is not None and now - self._started_at >= _SERVICE_S:
            self._deaths = 0
        self._started_at = None
        if not self._deaths:
            self._first_death_at = now
        self._deaths += 1
        late = self._deaths - _AT_ONCE
        if late <= 0:
            return 0.0
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(late - 1, _LONGEST_EXPONENT))
