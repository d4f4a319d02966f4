"""Whether memory is short on this node, or in the cgroup that this process is charged to: then the background steps back.

What the background brings passes through the page cache, and who is short of memory waits until it is given up. That is what the
kernel's pressure stall information tells (PSI): how long tasks have waited for memory. The cgroup's own is looked at where there
is one (cgroup v2), for a limit may be short where the node is not; and how much the node has left, for kernels without PSI.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

SHORT_STALL: Final = 0.1
"""The part of the time in which some task waited for memory."""
SHORT_AVAILABLE: Final = 0.03
"""Of the node's memory, what is to be had without swapping (MemAvailable)."""
_LOOK_S: Final = 1.0
_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_SOME_TOTAL: Final = re.compile(r"^some .*total=(\d+)", re.MULTILINE)
_MEMINFO: Final = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB", re.MULTILINE)


class Pressure:
    """Looks at most once a second, and only when asked. One thread at a time."""

    def __init__(self, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._meminfo = proc / "meminfo"
        self._stalls: Sequence[Path] = (proc / "pressure/memory", *_own_cgroup(proc, cgroups))
        self._looked_at: float | None = None
        self._stalled_us: dict[Path, int] = {}
        self._short = False

    def is_short(self, now: float) -> bool:
        """`now`: of a monotonic clock."""
        if self._looked_at is None or now - self._looked_at >= _LOOK_S:
            elapsed_us = (now - self._looked_at) * 1e6 if self._looked_at is not None else None
            self._looked_at = now
            self._short = self._stalls_long(elapsed_us) or self._little_is_left()
        return self._short

    def _stalls_long(self, elapsed_us: float | None) -> bool:
        found = False
        for path in self._stalls:
            if (match := _SOME_TOTAL.search(_read(path))) is None:
                continue
            before, self._stalled_us[path] = self._stalled_us.get(path), int(match[1])
            if before is not None and elapsed_us:
                found |= int(match[1]) - before > SHORT_STALL * elapsed_us
        return found

    def _little_is_left(self) -> bool:
        found = {name: int(value) for name, value in _MEMINFO.findall(_read(self._meminfo))}
        total, available = found.get("MemTotal"), found.get("MemAvailable")
        return total is not None and available is not None and available < SHORT_AVAILABLE * total


def _own_cgroup(proc: Path, cgroups: Path) -> tuple[Path, ...]:
    match = re.search(r"^0::/(.*)$", _read(proc / "self/cgroup"), re.MULTILINE)
    return (cgroups / match[1] / "memory.pressure",) if match else ()


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""
