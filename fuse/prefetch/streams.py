"""Who reads forward or backward, and how far ahead of them to fetch.

A stream is a place in a file where bytes are read one after another, by whomever: the ranks of a tensor-parallel loader share
and interleave, and sixteen threads of a streaming loader advance one front together. So streams are known per file and window
of offsets, never per file handle, and many at once. A stream looks ahead as far as it has come, from 4 to 256 MiB: that
doubles on its way, and one that ends after n bytes has cost at most n bytes more. What it passes over without reading counts
against it, until somebody reads it after all: so the window of a reader that uses a tenth of what it passes shrinks to nothing.
Reads at random places never make one.

Backward is no oddity: memcpy(3) of what is mapped goes from the end to the beginning where that spares the processor a conflict
of addresses (a copied mmap of Python does, for one), and the kernel's own read-ahead does not follow.

Pure and synchronous; `observe` runs once a READ and costs about a microsecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024
FIRST_WINDOW_BYTES: Final = 4 * MIB
"""What has to be read forward before it counts as a stream, and its first window. Kernel read-ahead makes up to 3 MiB of READs
out of page faults on a few hundred KiB (mm/filemap.c, do_sync_mmap_readahead), so that much says nothing."""
FIRST_BACKWARD_BYTES: Final = MIB + 1
"""The other way, more than one READ: no read-ahead of the kernel goes backward, and what does ends where its tensor begins."""
MAX_WINDOW_BYTES: Final = 256 * MIB
TOLERANCE_BYTES: Final = 16 * MIB
"""A stream goes on after a jump forward of this many bytes (mountpoint-s3 allows as much), if it has come that far itself."""
ABREAST: Final = 4
"""At its beginning a stream goes on after a jump of so many reads, either way: of that many readers that share a front, any may
be the first."""
MAX_STREAMS: Final = 1024
"""Those that have not moved for longest are forgotten first."""

Ranges = tuple[tuple[int, int], ...]


@dataclass(slots=True, eq=False)
class _Stream:
    next: int
    """The end of what was read furthest."""
    run: int
    """Bytes that were read on the way here, less those that were passed over."""
    passed: int = 0
    """Of those that count against it, what may still be read by who is late."""
    ahead: int = 0
    """The end of what was asked for ahead."""


class Streams:
    """The streams of one mount that go forward."""

    def __init__(self, max_window_bytes: int = MAX_WINDOW_BYTES, first_window_bytes: int = FIRST_WINDOW_BYTES) -> None:
        self.max_window_bytes = max_window_bytes
        self._first_window_bytes = first_window_bytes
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
        if distance > max(stream.run, ABREAST * size):
            # Near by chance: it starts anew from here.
            stream.run, stream.next, stream.passed = size, end, 0
        elif offset >= stream.next:
            run = max(size, stream.run + size - distance)
            stream.passed += stream.run + size - run
            stream.run, stream.next = run, end
        else:
            # The reads of one front come in any order, and the kernel never asks twice: what was passed over was read after all.
            late = min(size, stream.passed)
            stream.passed -= late
            stream.run += 2 * late
            stream.next = max(stream.next, end)
        moved = (ino, stream.next // TOLERANCE_BYTES)
        if moved != key:
            del self._streams[key]
            self._put(moved, stream)
        return self._ahead(stream)

    def _ahead(self, stream: _Stream) -> Ranges:
        if stream.run < self._first_window_bytes:
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
            stream.passed += other.passed
        self._streams[key] = stream
        if len(self._streams) > MAX_STREAMS:
            del self._streams[next(iter(self._streams))]


class BothWays:
    """The streams of one mount, in either direction."""

    def __init__(self, max_window_bytes: int = MAX_WINDOW_BYTES) -> None:
        self._forward = Streams(max_window_bytes)
        # Backward is forward in a file whose bytes are numbered from the far end.
        self._backward = Streams(max_window_bytes, FIRST_BACKWARD_BYTES)

    def limit(self, max_window_bytes: int) -> None:
        self._forward.max_window_bytes = self._backward.max_window_bytes = max_window_bytes

    def observe(self, ino: int, offset: int, size: int) -> Ranges:
        """As `Streams.observe`."""
        forward = self._forward.observe(ino, offset, size)
        if offset + size > _FAR_END:
            return forward
        mirrored = self._backward.observe(ino, _FAR_END - offset - size, size)
        if not mirrored:
            return forward
        ends = [(_FAR_END - start, length) for start, length in mirrored]
        return forward + tuple((max(0, end - length), min(length, end)) for end, length in ends if end > 0)


_FAR_END: Final = 1 << 60
"""A multiple of every unit, and beyond the end of every file."""
