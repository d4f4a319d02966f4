"""When a worker, or the fetcher, that lives is taken for dead. Pure: the caller looks, and counts looks instead of time.

A process is *wedged* when something waits for it and it does nothing: it was stopped, its threads wait for each other, its disk
hangs. That a read waits says nothing, it may wait for a registry, for hours; so a worker is asked on its control socket, whose
answers come from the loop that serves the mount. Two signs count:

- it leaves a question unanswered for `SILENT_LOOKS` looks while requests wait;
- it answers, says that no read waits, and yet the kernel's requests have not moved for `STUCK_LOOKS` looks: the loop lives and
  the part that answers the kernel does not.

Why looks and not seconds: a container that is frozen, or a machine that is suspended, stops us as well. When it goes on, the
clock says that nobody has answered for an hour, and the looks say that nobody was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

LOOK_S: Final = 1.0
"""Between two looks at what something waits for. What nothing waits for is not looked at."""
SILENT_LOOKS: Final = 10
STUCK_LOOKS: Final = 30

Verdict = Literal["idle", "busy", "silent", "stuck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen. `waiting`: of the kernel's requests, None where that cannot be known; `reads` and `reads_waiting`: as the
    worker said last, None before it said anything; `answered`: whether no question is open."""

    answered: bool
    waiting: int | None
    reads: int | None = None
    reads_waiting: int | None = None


class Pulse:
    """One worker's, from look to look."""

    def __init__(self, *, silent_looks: int = SILENT_LOOKS, stuck_looks: int = STUCK_LOOKS) -> None:
        self._silent_looks = silent_looks
        self._stuck_looks = stuck_looks
        self._silent = 0
        self._stuck = 0
        self._last: Look | None = None

    def look(self, look: Look) -> Verdict:
        """What is to be thought of it now; a question is asked after each look that was answered."""
        last, self._last = self._last, look
        # Without the kernel's account the worker's counts; but what it said before it was asked may be long ago.
        said_idle = look.waiting is None and look.answered and last is not None and look.reads_waiting == 0
        if look.waiting == 0 or said_idle:
            self._silent = self._stuck = 0
            self._last = None
            return "idle"
        if not look.answered:
            self._silent += 1
            return "silent" if self._silent >= self._silent_looks else "busy"
        self._silent = 0
        if look.waiting is None:
            return "busy"
        moved = last is None or not last.answered or (last.waiting, last.reads) != (look.waiting, look.reads)
        self._stuck = 0 if moved or look.reads_waiting != 0 else self._stuck + 1
        return "stuck" if self._stuck >= self._stuck_looks else "busy"
