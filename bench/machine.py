"""What must be known of the machine, and of how it was measured, to read its figures; nothing that names it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import msgspec

from bench.scale import FULL
from weightless import units


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    kernel: str
    processor: str
    cores: int
    memory_bytes: int
    python: str
    full: bool = True
    """Whether benchmarks had their full size."""

    @classmethod
    def here(cls) -> Machine:
        model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return cls(
            # Builders put names behind the number.
            kernel=re.sub(r"[^\d.].*", "", platform.release()),
            processor=model[1].strip() if model else platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            python=platform.python_version(),
            full=FULL,
        )

    def __str__(self) -> str:
        warning = "" if self.full else "; **small sizes: the figures mean nothing**"
        return (
            f"{units.count(self.cores, 'core')} ({self.processor}), {units.size(self.memory_bytes)} of memory, "
            f"Linux {self.kernel}, Python {self.python}{warning}"
        )
