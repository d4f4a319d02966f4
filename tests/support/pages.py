"""How much of a file lies in the page cache, and how much of that is not on the disk yet (cachestat(2), Linux 6.5)."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import pytest

_CACHESTAT = 451
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Pages:
    cached: int
    dirty: int
    writeback: int


def pages(fd: int) -> Pages:
    """In units of the system's page size. Skips the test where the kernel cannot tell."""
    area = (ctypes.c_uint64 * 2)(0, 0)  # from 0 to the end
    found = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, fd, ctypes.byref(area), ctypes.byref(found), 0) != 0:
        pytest.skip(f"cachestat: {os.strerror(ctypes.get_errno())}")
    return Pages(cached=found[0], dirty=found[1], writeback=found[2])
