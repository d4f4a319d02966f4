"""In which order a load touches the blocks of its blobs for the first time: what a later load may be fetched by.

Readers are many and interleave: the ranks of a tensor-parallel loader walk through several shards at once. So a touch goes on
with any of the runs that were gone on with lately, but with none for longer than one request of the fetcher brings: the order
within so much is of no use, and two shards that are read side by side stay so.

Called on every READ, from several threads. What is not new costs one look without a lock; the lock is held once for each MiB
that is read for the first time. Pure.
"""

from __future__ import annotations

import threading
from typing import Final

from fuse.artifact.profile import BLOCK_BYTES, MOST_RUNS, Runs
from fuse.filesystem.table import Table

LONGEST_RUN: Final = 64
"""As `fuse.fetch.queue.RUN_LIMITS` of the background. Runs that follow each other are joined in the end."""
MOST_OPEN: Final = 32
"""Runs that may be gone on with: more readers at a time interleave as single blocks."""

_Run = list[int]
"""Blob, first block, number of blocks."""


class Touches:
    """The first touches of one mount. A byte a block of its blobs, and twice MOST_RUNS runs at most."""

    def __init__(self, table: Table) -> None:
        self._seen = tuple(bytearray(-(-blob.size // BLOCK_BYTES)) for blob in table.blobs)
        self._runs: list[_Run] = []
        # By blob and the block after it, those that were gone on with last at the end.
        self._open: dict[tuple[int, int], _Run] = {}
        self._full = False
        self._lock = threading.Lock()
        self.blocks = 0
        """How many blocks have been touched."""

    def note(self, blob: int, first: int, last: int) -> None:
        """A reader wants blocks `first` to `last` of a blob."""
        seen = self._seen[blob]
        if seen.find(0, first, last + 1) < 0:
            return
        with self._lock:
            for block in range(first, last + 1):
                if not seen[block]:
                    seen[block] = 1
                    self.blocks += 1
                    self._add(blob, block)

    def runs(self) -> Runs:
        """What was touched so far. Where it changes place more often than MOST_RUNS times, the rest has no order."""
        with self._lock:
            self._join()
            return tuple((blob, first, blocks) for blob, first, blocks in self._runs[:MOST_RUNS])

    def _add(self, blob: int, block: int) -> None:
        run = self._open.pop((blob, block), None)
        if run is None or run[2] >= LONGEST_RUN:
            if not self._full and len(self._runs) == 2 * MOST_RUNS:
                # Joined so seldom that it costs each of them next to nothing; what is too many after that stays so.
                self._join()
                self._full = len(self._runs) > MOST_RUNS
            if self._full:
                return
            run = [blob, block, 0]
            self._runs.append(run)
        run[2] += 1
        self._open[blob, block + 1] = run
        if len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]

    def _join(self) -> None:
        """Makes one of runs that follow each other in the list as in the blob."""
        joined: list[_Run] = []
        for run in self._runs:
            blob, first, blocks = run
            before = joined[-1] if joined else None
            if before is None or before[0] != blob or before[1] + before[2] != first:
                joined.append(run)
                continue
            before[2] += blocks
            if self._open.get((blob, first + blocks)) is run:
                self._open[blob, first + blocks] = before
        self._runs = joined
