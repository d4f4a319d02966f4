"""A cached blob as its readers see it: bytes that are there, checked at their first use.

Given two descriptors, data and index; knows no path, no registry and no policy. A block that is there (`has`) is used by
`read` if it `is_checked`, else by `read_block`; what that refuses goes to the fetcher as damaged. Safe for many threads; nothing
blocks but reading the disk.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

from fuse.artifact.digest import Digest
from fuse.cache.index import (
    BLOCK_BYTES,
    COMPLETE,
    REJECTED,
    VERIFIED,
    IndexReader,
    block_length,
    blocks_of,
    entry_of,
)
from fuse.cache.quiet import read_quietly
from fuse.errors import Corrupt

_NOT_NOW: Final = frozenset((errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))


class CachedBlob:
    """Reads one blob of the cache while its writer fills it. Owns both descriptors."""

    def __init__(self, data_fd: int, index_fd: int) -> None:
        """Raises Corrupt when the files are no cached blob; the descriptors are closed then."""
        self._fd = data_fd
        try:
            self._index = _index_of(data_fd, index_fd)
        except BaseException:
            os.close(data_fd)
            raise
        finally:
            os.close(index_fd)
        self.size: Final = self._index.size
        self.blocks: Final = self._index.blocks
        # One byte a block: known to match its checksum.
        self._checked = bytearray(self.blocks)
        self._nowait = hasattr(os, "RWF_NOWAIT")
        self.withheld = False
        """Nothing of it is there for this reader before the whole has been compared with its digest (`verify: strict`)."""

    @property
    def digest(self) -> Digest:
        return self._index.digest

    @property
    def complete(self) -> bool:
        return self._index.flags & COMPLETE != 0

    @property
    def verified(self) -> bool:
        return self._index.flags & VERIFIED != 0

    @property
    def rejected(self) -> bool:
        """The blob turned out not to match its digest: none of it may be served."""
        return self._index.flags & REJECTED != 0

    @property
    def servable(self) -> bool:
        """Whether what is there may be served: what is withheld may be once the whole is verified."""
        return not self.withheld or self.verified

    def has(self, first: int, count: int = 1) -> bool:
        """Whether all of these blocks are there and may be served (their bytes still to be checked)."""
        return self.servable and self._index.has(first, count)

    def missing(self, first: int, count: int) -> list[tuple[int, int]]:
        """The runs (first, count) of blocks that are not there."""
        return list(self._index.missing(first, count))

    def note_arrived(self, first: int, count: int = 1) -> None:
        """The fetcher said just now that it has written these blocks. Only for blocks that this reader saw arrive."""
        end = min(first + count, self.blocks)
        if first < end:
            self._checked[first:end] = b"\1" * (end - first)

    def is_checked(self, first: int, count: int = 1) -> bool:
        """Whether the bytes of all these blocks may be used as they are read.

        That takes more than having compared them once. A disk may lose what it took, and the kernel then gives up the pages
        that it could not write, whenever it likes: until the whole blob is known to be on the disk (`verified`), each block is
        compared each time that it is read.
        """
        if not self.verified:
            return False
        checked = self._checked
        if count == 1:
            return checked[first] != 0
        return 0 not in checked[first : first + count]

    def check(self, block: int) -> bool:
        """Whether the block's bytes match the checksum taken when it arrived, as far as that has to be asked.

        False also for a block that has been forgotten meanwhile. Raises OSError when the disk cannot read it.
        """
        return self.is_checked(block) or self.read_block(block) is not None

    def check_content(self, block: int, content: bytes | bytearray | memoryview) -> bool:
        """Whether `content`, which the caller has just read and is about to use, is the block.

        It is compared in any case: what was read before the block was mended is not made right by its having been mended since.
        """
        entry = self._index[block]
        if not entry or entry_of(content) != entry:
            return False
        self._checked[block] = 1
        return True

    def read_block(self, block: int) -> bytes | None:
        """The whole block, if what was read matches its checksum. Raises OSError when the disk cannot read it."""
        content = os.pread(self._fd, block_length(self.size, block), block * BLOCK_BYTES)
        return content if self.check_content(block, content) else None

    def doubt(self, first: int, count: int = 1) -> None:
        """Takes back `note_arrived` and `check`: the blocks were found damaged, or read badly."""
        end = min(first + count, self.blocks)
        if first < end:
            self._checked[first:end] = bytes(end - first)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`, cut at the blob's end; may wait for the disk. The blocks must be there and checked.

        Raises OSError when the disk cannot read, Corrupt when the file has become shorter.
        """
        length = max(0, min(length, self.size - offset))
        content = os.pread(self._fd, length, offset)
        while len(content) < length:
            more = os.pread(self._fd, length - len(content), offset + len(content))
            if not more:
                raise Corrupt("the data of a cached blob was cut short", where=str(self.digest))
            content += more
        return content

    def read_quietly(self, buffer: memoryview, offset: int) -> bool:
        """Fills `buffer` from `offset`, whatever is there, and leaves the page cache as it was. Raises OSError."""
        return read_quietly(self._fd, buffer, offset)

    def try_read_nowait(self, offset: int, length: int) -> bytearray | None:
        """As `read` if all bytes are in the page cache; else None, at once."""
        length = max(0, min(length, self.size - offset))
        if not self._nowait:
            return None
        content = bytearray(length)
        return content if self.try_readinto_nowait(content, offset) else None

    def try_readinto_nowait(self, buffer: bytearray | memoryview, offset: int) -> bool:
        """Fills `buffer` from `offset` if all those bytes are in the page cache, and says whether it did."""
        if not self._nowait:
            return False
        try:
            return os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT) == len(buffer)
        except OSError as error:
            # A file system that cannot promise not to wait says so once and for all. A disk that fails is `read`'s to find out.
            if error.errno in _NOT_NOW:
                self._nowait = error.errno == errno.EAGAIN
            return False

    def blocks_of(self, offset: int, length: int) -> tuple[int, int]:
        """First block and number of blocks that a byte range of the blob touches."""
        return blocks_of(offset, max(0, min(length, self.size - offset)))

    def drop_pages(self, offset: int, length: int) -> None:
        """Tells the kernel that these pages of the cache file are not needed again (the mount has its own)."""
        with suppress(OSError):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._index.close()
        os.close(self._fd)


def _index_of(data_fd: int, index_fd: int) -> IndexReader:
    index = IndexReader(index_fd)
    if os.fstat(data_fd).st_size == index.size:
        return index
    index.close()
    raise Corrupt("the data of a cached blob is not as long as its index says", where=str(index.digest))
