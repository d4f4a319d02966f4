"""Has the kernel write fresh blocks to the disk soon, so that their pages can be given up once they were served.

A cold read would otherwise fill memory twice: dirty pages of the cache's file, which nothing can drop, and the pages of the
mount. And memory that is used anew is dear: in a virtual machine its first touch costs more than all copying (measured: 1 to 2 s
a GB; with early writing and dropping behind the reader, a cold read went from 0.5 to 0.9 times curl's rate).

The calls are made by one thread, which may have to wait for a slow disk; who writes never waits for it. What it cannot follow it
leaves to the kernel's own time.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from typing import Final

from fuse import threads

MOST_WAITING: Final = 256
_SYNC_FILE_RANGE_WRITE: Final = 2
"""Begin to write the dirty pages of the range, and do not wait (sync_file_range(2))."""
_SYNC_FILE_RANGE_WAIT: Final = 1 | 4
"""Wait for those under way before, and for all of them after."""

_libc = ctypes.CDLL(None)


def write_out(fd: int, offset: int, length: int) -> None:
    """Waits until what was written there has left memory. Only fsync(2) says that it is on the disk, and that nothing failed."""
    flags = _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), flags)


class Writeback:
    """One thread, started by the first block. Thread-safe."""

    def __init__(self) -> None:
        self._ranges: deque[tuple[int, int, int]] = deque(maxlen=MOST_WAITING)
        self._news = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, fd: int, offset: int, length: int) -> None:
        """The range was just written. A descriptor that is closed meanwhile, and even its number used again, does no harm."""
        self._ranges.append((fd, offset, length))
        self._news.release()
        if self._thread is None:
            with self._lock:
                thread = threading.Thread(target=self._run, name="writeback", daemon=True)
                if self._thread is None and threads.begin(thread):
                    self._thread = thread

    def _run(self) -> None:
        while True:
            self._news.acquire()
            try:
                fd, offset, length = self._ranges.popleft()
            except IndexError:
                continue  # too many: it was pushed out
            _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)
