"""When to tell of a keeper that is not there. Pure: the caller tells the time.

One that runs by itself comes when it comes: at an installation, at the start of a node or at an upgrade its pod may be seconds
behind ours, and that is no fault. One that stays away is, and is told of again the longer it does.
"""

from __future__ import annotations

from typing import Final, Literal

_AGAIN_S: Final = 30.0

News = Literal["awaited", "missing"]


class Absence:
    """One time without it. Not thread-safe."""

    def __init__(self, now: float, grace_s: float) -> None:
        """`now`: monotonic. It is no fault before `grace_s` have passed."""
        self._since = now
        self._missing_at_s = grace_s
        self._told = False

    def length_s(self, now: float) -> float:
        return now - self._since

    def news(self, now: float) -> News | None:
        """What is to be told now, after a look that found nobody; each time after twice as long."""
        away_s = self.length_s(now)
        if away_s >= self._missing_at_s:
            self._missing_at_s = max(_AGAIN_S, 2 * away_s)
            self._told = True
            return "missing"
        if self._told:
            return None
        self._told = True
        return "awaited"
