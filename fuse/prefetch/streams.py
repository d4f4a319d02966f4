"""Who reads forward, and how far ahead of them to fetch.

A stream is a place in a file where bytes are read one after another, by whomever: the ranks of a tensor-parallel loader share
and interleave, and sixteen threads of a streaming loader advance one front together. So streams are known per file and window
of offsets, never per file handle, and many at once. A stream looks ahead as far as it has come, from 4 to 256 MiB: that
doubles on its way, and one that ends after n bytes has cost at most n bytes more. Reads at random places never make one.

Pure and synchronous; `observe` runs once a READ and costs about a microsecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024
FIRST_WINDOW_BYTES: Final = 4 * MIB
"""What has to be read forward before it counts as a stream, and its first window. Kernel read-ahead makes up to 3 MiB of READs
out of page faults on a few hundred KiB (mm/filemap.c, do_sync_mmap_readahead), so that much says nothing."""
MAX_WINDOW_BYTES: Final = 256 * MIB
TOLERANCE_BYTES: Final = 16 * MIB
"""A stream goes on after a jump forward of this many bytes (mountpoint-s3 allows as much), if it has come that far itself."""
MAX_STREAMS: Final = 1024
"""Those that have not moved for longest are forgotten first."""

Ranges = tuple[tuple[int, int], ...]


@dataclass(slots=True, eq=False)
class _Stream:
    next: int
    """The end of what was read furthest."""
    run: int
    """Bytes that were read on the way here."""
    ahead: int = 0
    """The end of what was asked for ahead."""


class Streams:
    """The streams of one mount."""

    def __init__(self, max_window_bytes: int = MAX_WINDOW_BYTES) -> None:
        self.max_window_bytes = max_window_bytes
        # By file and offset in units of the tolerance: where the stream's next read is expected. At most one a place.
        self._streams: dict[tuple[int, int], _Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def observe(self, ino: int, offset: int, size: int) -> Ranges:
        """A READ of `size` bytes at `offset`; which ranges (offset, length) of this file to fetch ahead now.

        They may lie beyond the end of the file.
        """
        place = offset // TOLERANCE_BYTES
        end = offset + size
        # Where it is expected; at the end of the place before; at the beginning of the one after, if this read is late.
        for near in (place, place - 1, place + 1):
            key = (ino, near)
            stream = self._streams.get(key)
            if stream is not None and -TOLERANCE_BYTES <= offset - stream.next <= TOLERANCE_BYTES:
                break
        else:
            self._put((ino, end // TOLERANCE_BYTES), _Stream(end, size))
            return ()
        distance = offset - stream.next if offset >= stream.next else stream.next - end
        if distance > max(stream.run, 2 * size):
            # Near by chance: it starts anew from here.
            stream.run, stream.next = size, end
        else:
            # Also for what lies behind: the reads of one front come in any order, and the kernel never asks twice.
            stream.run += size
            stream.next = max(stream.next, end)
        moved = (ino, stream.next // TOLERANCE_BYTES)
        if moved != key:
            del self._streams[key]
            self._put(moved, stream)
        return self._ahead(stream)

    def _ahead(self, stream: _Stream) -> Ranges:
        if stream.run < FIRST_WINDOW_BYTES:
            return ()
        window = min(stream.run, self.max_window_bytes)
        start = max(stream.ahead, stream.next)
        # Half a window at a time, so that few and large requests are made.
        if window <= 0 or start - stream.next > window // 2:
            return ()
        stream.ahead = stream.next + window
        return ((start, stream.ahead - start),)

    def _put(self, key: tuple[int, int], stream: _Stream) -> None:
        other = self._streams.pop(key, None)
        if other is not None:
            # Two fronts have met: one goes on, with the merits of both.
            stream.next = max(stream.next, other.next)
            stream.ahead = max(stream.ahead, other.ahead)
            stream.run += other.run
        self._streams[key] = stream
        if len(self._streams) > MAX_STREAMS:
            del self._streams[next(iter(self._streams))]
