"""How many background transfers are worth having: as many as the link wants, and no more than this process can carry.

A far registry gives little per connection, so it takes many to fill the link. A near one fills a processor core with two; more
of them only fight for the interpreter's lock and push one another out of the processor's caches (measured on two cores: six
0.45 GB/s, two 0.6). What tells the two apart is not the speed but whether this process is busy all the time. Pure.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 2
_SAMPLE_S: Final = 0.25
_SATURATED: Final = 0.85
_IDLE: Final = 0.6
_STALE_S: Final = 1.0


class Pace:
    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self.lanes = self._most
        """How many background runs may be under way."""
        self._saturated = False
        self._wall_s = 0.0
        self._cpu_s = 0.0

    def sample(self, wall_s: float, cpu_s: float) -> None:
        """The clock and the processor time of this process, at any time while it transfers."""
        elapsed = wall_s - self._wall_s
        if elapsed < _SAMPLE_S:
            return
        busy = (cpu_s - self._cpu_s) / elapsed
        self._wall_s, self._cpu_s = wall_s, cpu_s
        if elapsed > 4 * _SAMPLE_S:
            return  # it did nothing in between, or long requests: this says little
        self._saturated = busy > _SATURATED
        if self._saturated:
            self.lanes = max(min(LEAST, self._most), self.lanes // 2)
        elif busy < _IDLE:
            self.lanes = min(self._most, self.lanes + 1)

    def saturated(self, wall_s: float) -> bool:
        """Whether the processor, not the link, was the limit a moment ago."""
        return self._saturated and wall_s - self._wall_s < _STALE_S
