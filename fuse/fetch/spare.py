"""Whether the processor has room for work that nobody waits for.

On two cores a loader, the worker that serves it and this process fill both: what is hashed beside them is taken from them, at the
lowest priority too, for whoever wakes finds the core busy. So it is asked how much of the cores nobody used a moment ago. Linux's
/proc/stat; where it says nothing there is room.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

ENOUGH: Final = 0.75
"""Of one core. Less than a whole one, since there is always somebody."""
_LEAST_S: Final = 0.1
"""The kernel counts hundredths of a second: a shorter look says nothing."""
_STALE_S: Final = 1.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Spare:
    """For the one thread that does such work. `clock` and `own` (this thread's processor time) are in seconds."""

    def __init__(
        self,
        stat: Path = Path("/proc/stat"),
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.thread_time,
    ) -> None:
        self._stat = stat
        self._clock = clock
        self._own = own
        self._then: tuple[float, float, float] | None = None
        """When it was looked at last, and what had been idle and our own until then."""
        self._room = False

    def room(self) -> bool:
        """Whether there was at the last look, which is made anew when it has become old enough; our own work leaves room."""
        idle = self._idle_s()
        if idle is None:
            return True
        now, own = self._clock(), self._own()
        if self._then is None or now - self._then[0] > _STALE_S:
            # What was long ago says nothing; there is room in a moment, or there is not.
            self._then, self._room = (now, idle, own), False
        elif (elapsed := now - self._then[0]) >= _LEAST_S:
            free = idle - self._then[1] + own - self._then[2]
            self._then, self._room = (now, idle, own), free >= ENOUGH * elapsed
        return self._room

    def _idle_s(self) -> float | None:
        """Of all cores together, since the machine started."""
        with suppress(OSError, ValueError, IndexError):
            with self._stat.open() as file:
                fields = file.readline().split()
            if fields[0] == "cpu":
                return (int(fields[4]) + int(fields[5])) / _TICKS
        return None
