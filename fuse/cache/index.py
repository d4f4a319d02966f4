"""The index of one cached blob: which blocks are there, and each one's checksum.

A fixed header and one 8-byte entry a block: 0 (absent), or the top bit and 63 bits of the block's XXH3. An entry is stored with
one aligned 8-byte write after the block's data was written, so a reader sees a block wholly or not at all, without a lock.

What is shared while a blob fills is memory (a memfd that only its writer can change), not the file: a disk that fails, is made
read-only or loses the file under a map of it would answer the next look with SIGBUS, which kills a worker with all its mounts'
readers. The file is written beside it, entry by entry, and is what the next start finds. After a power loss entries may have
reached it before their data: so whoever uses a block that it did not see arrive checks it first. Knows nothing of paths.

In the file there may be, behind the entries, one 8-byte *mark* a block, from when the blob first had a chunk index: the entry,
combined with what stands for that index, says that the block was proven by it. A version that knows no marks changes entries and
not marks, and so unproves what it writes.
"""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from typing import Final

import xxhash

from fuse.artifact.digest import Digest
from fuse.errors import Corrupt

BLOCK_BYTES: Final = 1024 * 1024
"""The unit of presence and checksum; the protocol's BLOCK_BYTES."""
VERSION: Final = 1
HEADER_BYTES: Final = 4096
"""A page, so that the entries are aligned whatever the header becomes."""

COMPLETE: Final = 1
"""Every block has been written."""
VERIFIED: Final = 2
"""The whole was compared with the digest and has reached the disk."""
REJECTED: Final = 4
"""The whole does not match the digest: nothing of it may be served any more."""

_F_SEAL_FUTURE_WRITE: Final = 0x10
_MAGIC: Final = b"wlblocks"
_FIXED = struct.Struct("<8sIIQ144s")
_SUM_AT: Final = _FIXED.size
_FLAGS_AT: Final = 512
_PRESENT: Final = 1 << 63
_MASK: Final = _PRESENT - 1
_MARKS_ALIGNED: Final = 65536
"""Where marks may begin: behind the entries, at the next multiple of the largest page of any machine."""


def block_count(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def block_length(size: int, block: int) -> int:
    """The number of bytes in `block` of a blob of `size` bytes; only the last one is short."""
    return min(BLOCK_BYTES, size - block * BLOCK_BYTES)


def blocks_of(offset: int, length: int) -> tuple[int, int]:
    """First block and number of blocks that a byte range touches."""
    if length <= 0:
        return offset // BLOCK_BYTES, 0
    first = offset // BLOCK_BYTES
    return first, (offset + length - 1) // BLOCK_BYTES - first + 1


def entry_of(content: bytes | bytearray | memoryview) -> int:
    """The entry that says: this block is there and has these bytes."""
    return _PRESENT | (xxhash.xxh3_64_intdigest(content) & _MASK)


def index_bytes(size: int) -> int:
    """How large the index of a blob of `size` bytes is."""
    return HEADER_BYTES + 8 * block_count(size)


def _marks_at(size: int) -> int:
    return -(-index_bytes(size) // _MARKS_ALIGNED) * _MARKS_ALIGNED


def create(fd: int, digest: Digest, size: int) -> None:
    """Writes an index without blocks into the empty file `fd`, which is allocated whole: no entry finds the disk full later.

    Raises OSError (ENOSPC, EDQUOT).
    """
    fixed = _FIXED.pack(_MAGIC, VERSION, BLOCK_BYTES, size, str(digest).encode())
    os.posix_fallocate(fd, 0, index_bytes(size))
    os.pwrite(fd, fixed + struct.pack("<Q", xxhash.xxh3_64_intdigest(fixed)), 0)


class IndexReader:
    """A read-only look at an index that another process may be filling. Safe for many threads."""

    def __init__(self, fd: int, *, follow: bool = True) -> None:
        """Takes the index behind `fd`, which is not needed afterwards; with `follow`, also what it comes to say later.

        Raises Corrupt if it is none, or of another version; OSError when it cannot be read.
        """
        header = os.pread(fd, _SUM_AT + 8, 0)
        if len(header) < _SUM_AT + 8:
            raise Corrupt("a block index without a header")
        magic, version, block_bytes, size, name = _FIXED.unpack_from(header)
        (checksum,) = struct.unpack_from("<Q", header, _SUM_AT)
        if magic != _MAGIC or checksum != xxhash.xxh3_64_intdigest(header[:_SUM_AT]):
            raise Corrupt("not a block index, or its header is damaged")
        if version != VERSION or block_bytes != BLOCK_BYTES:
            raise Corrupt(f"a block index of version {version} with blocks of {block_bytes} bytes")
        if os.fstat(fd).st_size < index_bytes(size):
            raise Corrupt("a block index that was cut short")
        self.digest = Digest.parse(name.rstrip(b"\0").decode())
        self.size: Final[int] = size
        self.blocks: Final = block_count(size)
        self._map = self._taken(fd, index_bytes(size), follow=follow)
        self._bytes = memoryview(self._map)
        # The casts read and write whole machine words: an entry is never seen half.
        self._flags = self._bytes[_FLAGS_AT : _FLAGS_AT + 8].cast("Q")
        self._entries = self._bytes[HEADER_BYTES:].cast("Q")

    def _taken(self, fd: int, length: int, *, follow: bool) -> mmap.mmap | bytearray:
        """What the index says: shared memory as it is; a copy of a file to which nothing can be added."""
        if follow and _is_memory(fd):
            return mmap.mmap(fd, length, access=mmap.ACCESS_READ)
        content = _whole(fd, length)
        if follow and not _is_full(content):
            # From a fetcher of an earlier version, which shares the file itself.
            return mmap.mmap(fd, length, access=mmap.ACCESS_READ)
        if _is_full(content):
            content[_FLAGS_AT] |= COMPLETE
        return content

    def __getitem__(self, block: int) -> int:
        return self._entries[block]

    @property
    def flags(self) -> int:
        return self._flags[0]

    def has(self, first: int, count: int = 1) -> bool:
        """Whether all of these blocks are there."""
        entries = self._entries
        if count == 1:
            return entries[first] != 0
        return all(entries[first : first + count])

    def first_absent(self, first: int, end: int) -> int:
        """The first block in [first, end) that is not there; `end` if all are."""
        entries = self._entries
        while first < end:
            if not entries[first]:
                return first
            # Long stretches of present blocks are skipped at the speed of memory comparison, not of the interpreter.
            if first + 64 <= end and all(entries[first : first + 64]):
                first += 64
            else:
                first += 1
        return end

    def first_present(self, first: int, end: int) -> int:
        """The first block in [first, end) that is there; `end` if none is."""
        entries = self._entries
        while first < end:
            if entries[first]:
                return first
            if first + 64 <= end and not any(entries[first : first + 64]):
                first += 64
            else:
                first += 1
        return end

    def present(self) -> Iterator[int]:
        """The blocks that are there."""
        end = 0
        while (first := self.first_present(end, self.blocks)) < self.blocks:
            end = self.first_absent(first, self.blocks)
            yield from range(first, end)

    def missing(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The runs (first, count) of absent blocks in a range."""
        end = min(first + count, self.blocks)
        while (start := self.first_absent(first, end)) < end:
            first = self.first_present(start, end)
            yield start, first - start

    def count_present(self) -> int:
        return self.blocks - array.array("Q", self._entries.tobytes()).count(0)

    def bytes_present(self) -> int:
        """How many bytes of the blob are there."""
        if not self.blocks:
            return 0
        full = self.count_present() * BLOCK_BYTES
        last = self.blocks - 1
        return full - (BLOCK_BYTES - block_length(self.size, last) if self._entries[last] else 0)

    def close(self) -> None:
        for view in (self._entries, self._flags, self._bytes):
            view.release()
        if isinstance(self._map, mmap.mmap):
            self._map.close()


class IndexWriter(IndexReader):
    """The one writer's view. Calls for one block must not overlap; changes of flags are the caller's to serialise.

    `publish`, `forget` and the flags change what readers see, at once and without failing; `record` and `flush` bring it to the
    disk, and may fail.
    """

    def __init__(self, fd: int) -> None:
        """As a reader's; keeps a descriptor of its own."""
        self._file = os.dup(fd)
        self._memory = -1
        self._marks: memoryview | None = None
        self._recording = threading.Lock()
        try:
            super().__init__(fd)
        except BaseException:
            self._close_files()
            raise

    def _taken(self, fd: int, length: int, *, follow: bool) -> mmap.mmap | bytearray:
        del follow
        content = _whole(fd, length)
        if _is_full(content):
            content[_FLAGS_AT] |= COMPLETE
            if content[_FLAGS_AT] & VERIFIED:
                return content
        # Readers must come to see that it is verified, or that a chunk index takes back what it has not proven.
        return self._share(content)

    def _share(self, content: bytes | bytearray | memoryview) -> mmap.mmap:
        memory = self._memory = os.memfd_create("index", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.posix_fallocate(memory, 0, len(content))
        shared = mmap.mmap(memory, len(content), access=mmap.ACCESS_WRITE)
        shared[:] = bytes(content)
        os.fchmod(memory, 0o444)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals | _F_SEAL_FUTURE_WRITE)
        except OSError as error:  # kernels before 5.1; the mode and a read-only descriptor must do
            if error.errno != errno.EINVAL:
                raise
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        return shared

    def reader_fd(self) -> int:
        """A fresh read-only descriptor for a reader: of the shared memory, or of the file when all is there and verified.

        The caller owns it. Raises OSError.
        """
        return os.open(f"/proc/self/fd/{self._file if self._memory < 0 else self._memory}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def has_marks(self) -> bool:
        return self._marks is not None

    def open_marks(self) -> None:
        """Reads the marks, for which room is made when there are none yet. Raises OSError (ENOSPC, EDQUOT)."""
        if self._marks is not None or not self.blocks:
            return
        at, length = _marks_at(self.size), 8 * self.blocks
        os.posix_fallocate(self._file, at, length)
        self._marks = memoryview(_whole(self._file, length, at)).cast("Q")

    def mark(self, block: int, proof: int) -> None:
        """Notes that the block, as it is published, was proven by the chunk index that `proof` stands for (64 bits, not 0)."""
        if self._marks is not None:
            self._marks[block] = self._entries[block] ^ proof

    def is_marked(self, block: int, proof: int) -> bool:
        """Whether `mark` was called for the block and what is there of it is still the same."""
        entry = self._entries[block]
        return entry != 0 and self._marks is not None and self._marks[block] == entry ^ proof

    def share(self) -> None:
        """Lets who opens the blob from now on see what changes, also where all is there and verified. Raises OSError."""
        if self._memory < 0:
            # Others may be looking at the copy: it is left to them.
            self._map = self._share(self._bytes)
            self._bytes = memoryview(self._map)
            self._flags = self._bytes[_FLAGS_AT : _FLAGS_AT + 8].cast("Q")
            self._entries = self._bytes[HEADER_BYTES:].cast("Q")

    def publish(self, block: int, entry: int) -> None:
        """Says that `block` is there; its data must have been written before."""
        self._entries[block] = entry

    def forget(self, block: int) -> None:
        """Readers that hold a copy, as nothing was missing, find out by the checksum."""
        self.share()  # something is missing from now on: who opens the blob next must see it come
        self._entries[block] = 0

    def set_flags(self, flags: int) -> None:
        self._flags[0] |= flags

    def clear_flags(self, flags: int) -> None:
        self._flags[0] &= ~flags

    def record(self, block: int, entry: int) -> None:
        """Writes a block's entry to the file, before it is published or after it was forgotten. Raises OSError."""
        os.pwrite(self._file, struct.pack("<Q", entry), HEADER_BYTES + 8 * block)

    def record_absent(self, first: int, count: int) -> None:
        """Writes to the file that these blocks are not there, after they were forgotten. Raises OSError."""
        os.pwrite(self._file, bytes(8 * count), HEADER_BYTES + 8 * first)

    def record_mark(self, block: int, entry: int, proof: int) -> None:
        """Writes to the file that the block with this entry is proven, as `mark`. Whichever of entry and mark reaches the disk
        alone proves nothing. Raises OSError."""
        if self._marks is not None:
            os.pwrite(self._file, struct.pack("<Q", entry ^ proof), _marks_at(self.size) + 8 * block)

    def record_flags(self) -> None:
        """Writes the flags to the file. Raises OSError."""
        with self._recording:  # the last to write has seen the last change
            os.pwrite(self._file, struct.pack("<Q", self.flags), _FLAGS_AT)

    def flush(self) -> None:
        """Writes everything to the file, and waits until it is on the disk. Raises OSError."""
        with self._recording:
            os.pwrite(self._file, self._bytes[_FLAGS_AT:], _FLAGS_AT)
        os.fsync(self._file)

    def close(self) -> None:
        super().close()
        self._close_files()

    def _close_files(self) -> None:
        for fd in (self._file, self._memory):
            if fd >= 0:
                os.close(fd)


def _is_memory(fd: int) -> bool:
    """Whether it is a memory file, whose map no disk can take away."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _whole(fd: int, length: int, at: int = 0) -> bytearray:
    """The `length` bytes from `at` on. Raises Corrupt when the file ends before, OSError."""
    content = bytearray(length)
    view = memoryview(content)
    filled = 0
    while filled < length:
        count = os.preadv(fd, [view[filled:]], at + filled)
        if not count:
            raise Corrupt("a block index that was cut short")
        filled += count
    return content


def _is_full(content: bytearray) -> bool:
    return 0 not in memoryview(content)[HEADER_BYTES:].cast("Q")
