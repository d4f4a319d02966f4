"""Keeps the memory of this process out of core dumps, and other processes of its user out of its memory: credentials are there.

Whatever it starts is not concerned: that begins with a memory of its own.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def forbid() -> None:
    """No core dump, no tracer without CAP_SYS_PTRACE (prctl(2), PR_SET_DUMPABLE). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
