"""How soon a worker, fetcher or keeper that died is replaced. Pure: the caller tells the time."""

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

    def started(self, now: float) -> None:
        """One serves since `now`."""
        self._started_at = now

    def died(self, now: float) -> float:
        """Seconds to wait before the next start, after a death or a start that failed."""
        if self._started_at is not None and now - self._started_at >= _SERVICE_S:
            self._deaths = 0
        self._started_at = None
        self._deaths += 1
        late = self._deaths - _AT_ONCE
        if late <= 0:
            return 0.0
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(late - 1, _LONGEST_EXPONENT))

    @property
    def deaths(self) -> int:
        """In a row, none of them after ten seconds of service."""
        return self._deaths

    def looping(self, now: float) -> bool:
        """Whether it died so often that the next start has to wait, and has not served ten seconds since."""
        served = self._started_at is not None and now - self._started_at >= _SERVICE_S
        return self._deaths >= _AT_ONCE and not served
