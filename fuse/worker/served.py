"""What was served lies in the mount's own pages: those of the cache's file are given up, a little later.

Later, because the kernel passes over pages that are still on their way to the disk (`fuse.cache.writeback` sends them soon), and
because a neighbour may be about to read the same block. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from fuse.worker.blobstate import BlobState

LAG_BYTES: Final = 16 * 1024 * 1024


class Served:
    """The last bytes that were served, for all threads of a mount."""

    def __init__(self, lag_bytes: int = LAG_BYTES) -> None:
        self._lag_bytes = lag_bytes
        self._ranges: deque[tuple[BlobState, int, int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def note(self, state: BlobState, position: int, length: int) -> None:
        """These bytes of a blob are where they should be."""
        due: list[tuple[BlobState, int, int]] = []
        with self._lock:
            last = self._ranges[-1] if self._ranges else None
            if (
                last is not None
                and last[0] is state
                and last[1] + last[2] == position
                and last[2] < self._lag_bytes // 4
            ):
                # What is read in small pieces is given up in large ones.
                self._ranges[-1] = (state, last[1], last[2] + length)
            else:
                self._ranges.append((state, position, length))
            self._bytes += length
            while self._bytes > self._lag_bytes and len(self._ranges) > 1:
                due.append(self._ranges.popleft())
                self._bytes -= due[-1][2]
        for blob, start, count in due:
            cached = blob.borrow()
            if cached is not None:
                try:
                    cached.drop_pages(start, count)
                finally:
                    blob.give_back()
