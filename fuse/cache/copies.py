"""Parts of blobs as files of their own: what the kernel can show alone of an archive (`fuse.filesystem.native`).

A copy is a blob like any other, complete and verified from its first moment: named by the digest of its own bytes, with an index
of their checksums. So it is counted, evicted, pinned, listed and compared as blobs are, also by versions of this program that do
not know of copies. What sets it apart is its scope, in which nobody fetches, and so nobody but its one writer makes files.

A copy appears whole or not at all: it is written under a name that no reader looks for and every start sweeps, brought to the
disk, and only then renamed. Which part of which blob it is, is remembered beside (`Copies`), and may be forgotten at any time:
the part is copied again then, and turns out to be the copy that is there.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fuse.artifact.digest import Digest
from fuse.cache import index as block_index
from fuse.cache.index import BLOCK_BYTES, COMPLETE, VERIFIED, IndexWriter
from fuse.cache.keys import BlobKey, scope_of_copies
from fuse.cache.objects import ObjectStore, sync_directory
from fuse.cache.store import UNFINISHED, CacheStore
from fuse.cache.writeback import write_out

KIND: Final = "copies"
"""Of objects."""
_ALGORITHM: Final = "sha256"
_WRITE_BYTES: Final = 128 * 1024
"""As in `fuse.cache.writer`."""


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """The copies of one blob."""

    blob: str
    """`str(BlobKey)`."""
    copies: tuple[tuple[int, int, str], ...]
    """Offset and size of each part, and the digest of its bytes."""


class Copies:
    """Which parts of blobs were copied. Says nothing about whether the copy is still there. One thread writes."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def of(self, blob: BlobKey) -> dict[tuple[int, int], BlobKey]:
        """The copies of a blob's parts, by offset and size."""
        known = self._known(_name(blob))
        if known is None or known.blob != str(blob):
            return {}
        scope = scope_of_copies(blob.scope)
        return {(offset, size): BlobKey(Digest.parse(text), size, scope) for offset, size, text in known.copies}

    def remember(self, blob: BlobKey, copies: Mapping[tuple[int, int], BlobKey]) -> None:
        """In place of what was known of this blob."""
        known = _Known(
            blob=str(blob), copies=tuple((*place, str(copy.digest)) for place, copy in sorted(copies.items()))
        )
        self._objects.put(KIND, _name(blob), msgspec.json.encode(known))

    def sources(self) -> dict[BlobKey, BlobKey]:
        """Of every copy that is known, a blob that it is a part of."""
        found: dict[BlobKey, BlobKey] = {}
        for name in self._objects.keys(KIND):
            known = self._known(name)
            if known is not None:
                blob = BlobKey.parse(known.blob)
                found.update(dict.fromkeys(self.of(blob).values(), blob))
        return found

    def _known(self, name: str) -> _Known | None:
        content = self._objects.get(KIND, name)
        if content is None:
            return None
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(content, type=_Known)
        return None


def _name(blob: BlobKey) -> str:
    return hashlib.sha256(str(blob).encode()).hexdigest()


class CopyWriter:
    """Makes one copy, from its first byte to its last. Close it: what was not finished is gone then. For one thread."""

    def __init__(self, store: CacheStore, of: BlobKey, size: int) -> None:
        """Of a part of `size` bytes of the blob `of`. Raises OSError."""
        self._store = store
        self._scope = scope_of_copies(of.scope)
        self._size = size
        self._hash = hashlib.sha256()
        self._entries = array("Q")
        self._block = bytearray()
        self._written = 0
        directory = store.directory(_ALGORITHM)
        self._data = directory / f"{UNFINISHED}data"
        self._index = directory / f"{UNFINISHED}index"
        self._remove()
        self._fd = os.open(self._data, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)

    def append(self, content: memoryview) -> None:
        """The next bytes. Raises OSError."""
        self._hash.update(content)
        while content:
            piece = content[: BLOCK_BYTES - len(self._block)]
            self._block += piece
            content = content[len(piece) :]
            if len(self._block) == BLOCK_BYTES:
                self._write_block()

    def _write_block(self) -> None:
        self._entries.append(block_index.entry_of(self._block))
        begun = self._written
        with memoryview(self._block) as block:
            while (done := self._written - begun) < len(block):
                self._written += os.pwrite(self._fd, block[done : done + _WRITE_BYTES], self._written)
        self._block.clear()
        # Waited for, block by block: a disk that has more urgent things to do is not given a heap of these, nor is memory.
        write_out(self._fd, begun, self._written - begun)
        os.posix_fadvise(self._fd, begun, self._written - begun, os.POSIX_FADV_DONTNEED)

    def seal(self) -> BlobKey:
        """All bytes are in: what the copy is called. It is on the disk, whole, and not there yet. Raises OSError, ValueError."""
        if self._block:
            self._write_block()
        if self._written != self._size:
            raise ValueError(f"a copy of {self._written} bytes, not {self._size}")
        os.fchmod(self._fd, 0o444)
        os.fsync(self._fd)
        key = BlobKey(Digest(_ALGORITHM, self._hash.hexdigest()), self._size, self._scope)
        fd = os.open(self._index, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            os.fchmod(fd, 0o444)
            block_index.create(fd, key.digest, key.size)
            index = IndexWriter(fd)
        finally:
            os.close(fd)
        try:
            for block, entry in enumerate(self._entries):
                index.publish(block, entry)
            index.set_flags(COMPLETE | VERIFIED)
            index.flush()
        finally:
            index.close()
        return key

    def publish(self, key: BlobKey) -> None:
        """Puts what was sealed in its place, where the same may be already. Raises OSError.

        Called under the lock under which blobs are opened and removed.
        """
        data, index = self._store.paths(key)
        self._data.replace(data)
        self._index.replace(index)
        sync_directory(index.parent)

    def close(self) -> None:
        os.close(self._fd)
        self._remove()

    def _remove(self) -> None:
        for path in (self._data, self._index):
            with suppress(OSError):
                Path(path).unlink()
