"""The one writer of a blob: its data file, and its index. Blocks may be written by several threads, each block by one.

Made by `fuse.cache.store`, which knows where files lie; this knows descriptors. What says something about the blob may fail,
and costs no more than fetching or proving again after the next start: it is logged, and not raised.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from fuse.cache import index as block_index
from fuse.cache.index import IndexWriter
from fuse.cache.keys import BlobKey
from fuse.cache.writeback import Writeback
from fuse.errors import Corrupt

_WRITE_BYTES: Final = 128 * 1024
"""At once. Larger writes make file systems take larger folios (ext4: up to 2 MiB), which come from memory that nobody has used
yet: measured in a virtual machine, 1 MiB a call wrote 0.8 to 1.7 GB/s, 128 KiB 5.3 GB/s."""
_log = structlog.get_logger(__name__)


class BlobWriter:
    """The one writer of a blob: its data file and its index. Blocks may be written by several threads, each block by one."""

    def __init__(
        self,
        key: BlobKey,
        index_path: Path,
        data_fd: int,
        index: IndexWriter,
        writeback: Writeback,
    ) -> None:
        self.key: Final = key
        self.index: Final = index
        self._index_path = index_path
        self.fd: Final = data_fd
        self._writeback = writeback
        # The kernel lets one write into a file at a time, and spins while another is at it: waiting here costs no CPU.
        self._writing = threading.Lock()

    def write(self, block: int, content: memoryview) -> None:
        """Writes a block's data; the caller publishes it afterwards. Raises OSError (ENOSPC, EDQUOT, EROFS, EIO)."""
        offset = block * block_index.BLOCK_BYTES
        written = 0
        with self._writing:
            while written < len(content):
                written += os.pwrite(self.fd, content[written : written + _WRITE_BYTES], offset + written)
        self._writeback.begin(self.fd, offset, written)

    def read_into(self, block: int, buffer: memoryview) -> memoryview:
        """The block's bytes in `buffer`; fewer than expected where the file ends early. Raises OSError."""
        length = block_index.block_length(self.key.size, block)
        got = os.preadv(self.fd, [buffer[:length]], block * block_index.BLOCK_BYTES)
        return buffer[:got]

    def record(self, block: int, entry: int) -> None:
        """Notes a block's entry on the disk, where the next start finds it; what cannot be noted is fetched again then."""
        try:
            self.index.record(block, entry)
        except OSError as error:
            _log.warning("block_not_recorded", digest=str(self.key.digest), block=block, error=str(error))

    def record_proven(self, block: int, entry: int, proof: int) -> None:
        """As `record`, for a block that the chunk index with the mark `proof` has proven."""
        self.record(block, entry)
        try:
            self.index.record_mark(block, entry, proof)
        except OSError as error:
            _log.warning("mark_not_recorded", digest=str(self.key.digest), block=block, error=str(error))

    def record_lost(self, runs: Sequence[tuple[int, int]]) -> None:
        """As `record`, for runs (first, count) of blocks that were forgotten, and for the flags."""
        if not runs:
            return
        try:
            for first, count in runs:
                self.index.record_absent(first, count)
        except OSError as error:
            _log.warning("loss_not_recorded", digest=str(self.key.digest), error=str(error))
        self.record_flags()

    def record_flags(self) -> None:
        """As `record`, for the flags."""
        try:
            self.index.record_flags()
        except OSError as error:
            _log.warning("flags_not_recorded", digest=str(self.key.digest), error=str(error))

    def block_is_sound(self, block: int, buffer: memoryview) -> bool:
        """Whether the block is there and matches its checksum; its bytes are left in `buffer`."""
        try:
            content = self.read_into(block, buffer)
        except OSError as error:
            _log.warning("block_unreadable", digest=str(self.key.digest), block=block, error=str(error))
            return False
        return block_index.entry_of(content) == self.index[block]

    def reader_fds(self) -> tuple[int, int]:
        """Fresh read-only descriptors of data and index, for a reader. The caller owns them. Raises OSError."""
        # By descriptor: the name may have been removed, or another blob may bear it by now.
        data = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return data, self.index.reader_fd()
        except BaseException:
            os.close(data)
            raise

    def keep_marks(self) -> None:
        """Makes room in the index for which blocks a chunk index has proven. Without, they are proven again after a restart."""
        try:
            self.index.open_marks()
        except (OSError, Corrupt) as error:
            _log.warning("marks_not_kept", digest=str(self.key.digest), error=str(error))

    def written(self, unit_bytes: int) -> frozenset[int]:
        """In units of so many bytes: where the data file is not a hole. Says nothing about what is there."""
        found: set[int] = set()
        end = 0
        with suppress(OSError):  # ENXIO: nothing follows
            while end < self.key.size:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
                end = os.lseek(self.fd, start, os.SEEK_HOLE)
                found.update(range(start // unit_bytes, -(-end // unit_bytes)))
        return frozenset(found)

    def sync(self) -> None:
        """Waits until data and index are on the disk. Raises OSError."""
        os.fsync(self.fd)
        self.index.flush()

    def touch(self) -> None:
        """Notes that the blob is in use now."""
        with suppress(OSError):
            os.utime(self._index_path)

    def disk_bytes(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        self.index.close()
        os.close(self.fd)
