"""Where the bytes of a served blob come from: memory, files, several parts joined, or a rule that computes them.

A source is immutable and may be read by many threads at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from fuse.artifact.digest import Digest

_PIECE_BYTES: Final = 1024 * 1024


class BlobSource(Protocol):
    """The content of one blob. `read` returns exactly `length` bytes of a range that lies inside the blob."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class BytesSource:
    """A blob in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


class FileSource:
    """A file, opened at each read: a source owns no descriptor that someone would have to close."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)


class JoinedSource:
    """Sources one after the other: a tar archive is headers, files and padding."""

    def __init__(self, parts: tuple[BlobSource, ...]) -> None:
        self._parts = parts
        self._size = sum(part.size for part in parts)

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        start = 0
        for part in self._parts:
            first = max(offset, start)
            last = min(offset + length, start + part.size)
            if first < last:
                pieces.append(part.read(first - start, last - first))
            start += part.size
        return b"".join(pieces)


class SyntheticSource:
    """Bytes that are computed, so that a blob of a terabyte needs no disk. Each 4 KiB page repeats its own 16-byte number."""

    _PAGE_BYTES: Final = 4096

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self._size = size
        self._seed = seed

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        page_bytes = self._PAGE_BYTES
        first = offset // page_bytes
        last = -(-(offset + length) // page_bytes)
        content = b"".join(
            ((self._seed << 64) + page).to_bytes(16, "big") * (page_bytes // 16) for page in range(first, last)
        )
        skip = offset - first * page_bytes
        return content[skip : skip + length]


def pieces(source: BlobSource, offset: int, length: int, piece_bytes: int = _PIECE_BYTES) -> Iterator[bytes]:
    """The range, in pieces of at most `piece_bytes`."""
    end = offset + length
    while offset < end:
        count = min(piece_bytes, end - offset)
        yield source.read(offset, count)
        offset += count


def digest_of(source: BlobSource) -> Digest:
    """The sha256 of the whole source, which is read once."""
    hasher = hashlib.sha256()
    for piece in pieces(source, 0, source.size):
        hasher.update(piece)
    return Digest("sha256", hasher.hexdigest())
