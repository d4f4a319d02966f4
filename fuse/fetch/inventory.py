"""The cache as an administrator sees it: what is there, removing it, checking it.

Blocking, for threads of the administration; works beside running transfers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import msgspec

from fuse.artifact.digest import Digest
from fuse.cache.copies import Copies
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey
from fuse.cache.store import StoredBlob
from fuse.errors import CacheFailed, Cancelled, Conflict, NotFound
from fuse.fetch import protocol
from fuse.fetch.blobs import BlobState
from fuse.fetch.engine import Engine


class Inventory:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.shelf.store
        self._copies = Copies(engine.shelf.store.objects)

    def blobs(self) -> Iterator[protocol.CachedBlob]:
        sources = self._copies.sources()
        for key in self._keys(()):
            shown = self._shown(key)
            if shown is not None:
                source = sources.get(key)
                yield msgspec.structs.replace(shown, copy_of=str(source.digest)) if source else shown

    def remove(self, digests: Sequence[str]) -> Iterator[protocol.CachedBlob]:
        """Yields what was removed: also copies of parts of blobs that were named.

        Raises NotFound or Conflict (in use, pinned) for a named blob; such unnamed ones are left.
        """
        keys = self._keys(digests)
        if digests:
            for key in keys:
                if key in self._engine.shelf.states() or self._engine.shelf.pins.is_mounted(str(key)):
                    raise Conflict("the blob is in use by a mount", where=str(key.digest), fix="unmount it first")
                if names := self._engine.shelf.pins.names(str(key)):
                    raise Conflict(
                        f"the blob is pinned by {names[0]}",
                        where=str(key.digest),
                        fix=f"weightless cache unpin {names[0]}",
                    )
            keys += {copy for key in keys for copy in self._copies.of(key).values()} - set(keys)
        try:
            for key in keys:
                with self._engine.shelf.space.lock:
                    # Asked again under the lock under which blobs are opened.
                    if key in self._engine.shelf.states() or str(key) in self._engine.shelf.pins.blobs:
                        continue
                    shown = self._shown(key)
                    self._store.remove(key)
                if shown is not None:
                    yield shown
            if not digests:
                self._store.empty_quarantine()
        finally:
            self._engine.shelf.space.recount()

    def pin(self, name: str, keys: Sequence[BlobKey]) -> None:
        """Keeps these blobs, there or not, from eviction and removal. Raises CacheFailed."""
        try:
            self._engine.shelf.pins.add(name, map(str, keys))
        except OSError as error:
            raise CacheFailed(f"the pin cannot be written: {error.strerror}", where=name) from error

    def pin_digests(self, digests: Sequence[str]) -> None:
        """Each by its digest, whatever registry it is from. Raises NotFound, CacheFailed."""
        for digest in digests:
            self.pin(str(Digest.parse(digest)), self._keys((digest,)))

    def unpin(self, names: Sequence[str]) -> None:
        """Raises NotFound for a name that nothing is pinned by; the others are unpinned then."""
        for name in names:
            for blob in self._engine.shelf.pins.pinned_as(name):
                self._store.touch(BlobKey.parse(blob))  # nobody said so while a native mount had it
        missing = [name for name in names if not self._engine.shelf.pins.remove(name)]
        if missing:
            raise NotFound(
                "nothing is pinned by this name", where=missing[0], fix="weightless cache ls shows the names"
            )

    def verify(self, digests: Sequence[str], cancel: threading.Event) -> Iterator[protocol.CachedBlob]:
        """Reads every block again; yields each blob with the number of damaged blocks, which are forgotten."""
        for key in self._keys(digests):
            mount = self._engine.attach("verify", [key], uses=False)
            try:
                self._engine.shelf.prepare(mount.blobs[0], make=False)
                damaged = self._damaged_blocks(mount.blobs[0], cancel)
                shown = self._shown(key, damaged_blocks=damaged, pinned=mount.blobs[0].references > 1)
            finally:
                self._engine.detach(mount)
            if damaged and key.is_copy:
                self._drop(key)
            if shown is not None:
                yield shown

    def _drop(self, key: BlobKey) -> None:
        """Nobody fetches what is missing of a copy: it is of no use any more, but to a mount that shows it."""
        with self._engine.shelf.space.lock:
            if key not in self._engine.shelf.states() and str(key) not in self._engine.shelf.pins.blobs:
                self._store.remove(key)

    def _damaged_blocks(self, blob: BlobState, cancel: threading.Event) -> int:
        """Counts and forgets damaged blocks; a complete blob is hashed too, and set aside if it does not match."""
        writer = blob.writer
        if writer is None:
            return 0
        buffer = memoryview(bytearray(BLOCK_BYTES))
        hasher = blob.digest.hasher()
        damaged = absent = 0
        for block in range(blob.blocks):
            if cancel.is_set():
                raise Cancelled("given up", where=str(blob.digest))
            if not writer.index[block]:
                absent += 1
            elif not self._engine.shelf.recheck(blob, block, buffer):
                damaged += 1
            elif not absent and not damaged:
                hasher.update(buffer[: min(BLOCK_BYTES, blob.size - block * BLOCK_BYTES)])
        if not absent and not damaged and hasher.hexdigest() != blob.digest.hex:
            self._engine.shelf.reject(blob)
            return blob.blocks
        return damaged

    def _keys(self, digests: Sequence[str]) -> list[BlobKey]:
        keys = sorted(self._store.keys(), key=str)
        if not digests:
            return keys
        wanted = {Digest.parse(digest) for digest in digests}
        missing = wanted - {key.digest for key in keys}
        if missing:
            raise NotFound("the cache holds nothing of this blob", where=str(min(missing, key=str)))
        return [key for key in keys if key.digest in wanted]

    def _shown(
        self, key: BlobKey, *, damaged_blocks: int = 0, pinned: bool | None = None
    ) -> protocol.CachedBlob | None:
        stored = self._store.stored(key)
        state = self._engine.shelf.states().get(key)
        if stored is None:
            if not damaged_blocks:
                return None
            stored = StoredBlob(
                key=key, bytes_cached=0, disk_bytes=0, complete=False, verified=False, used_at=time.time()
            )
        return protocol.CachedBlob(
            digest=str(key.digest),
            size=key.size,
            bytes_cached=stored.bytes_cached,
            complete=stored.complete,
            verified=stored.verified,
            pinned=self._engine.shelf.pins.is_mounted(str(key)) or (state is not None if pinned is None else pinned),
            used_at=stored.used_at,
            damaged_blocks=damaged_blocks,
            pinned_by=self._engine.shelf.pins.names(str(key)),
            copy=key.is_copy,
        )
