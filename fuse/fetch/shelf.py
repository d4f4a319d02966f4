"""The blobs that somebody holds: opened and made on the disk, kept while they are held, believed, taken back or set aside.

What is wished and fetched of them is the engine's; this knows what there is of each, and who has to be told when the whole turns
out right or wrong. Plain state of blobs is guarded by the one lock (the dispatcher's), under which no disk is touched; files are
opened, removed and evicted under `space.lock`. Lock order: `space.lock`, then `lock`. Methods whose name ends in `_locked` are
called with `lock` held; the others take what they need.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable
from typing import Final

import structlog

from fuse.cache.index import BLOCK_BYTES, COMPLETE, REJECTED, VERIFIED, block_length
from fuse.cache.keys import BlobKey
from fuse.cache.pins import Pins
from fuse.cache.quota import Limits
from fuse.cache.store import CacheStore
from fuse.cache.writer import BlobWriter
from fuse.errors import Corrupt
from fuse.fetch import protocol, proving
from fuse.fetch import tally as names
from fuse.fetch.blobs import BlobState
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.mounts import Outbox, deliver
from fuse.fetch.progress import FULL
from fuse.fetch.runs import Priority
from fuse.fetch.space import Space
from fuse.fetch.tally import Tally
from fuse.fetch.trouble import end_trouble

_DESCRIPTORS_A_BLOB: Final = 4
_DESCRIPTORS_OF_OTHERS: Final = 64
"""Left to connections, sessions, and blocks that are lent: with a file in each, what is not kept could not be read."""

_log = structlog.get_logger(__name__)


def _most_writers() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (most - _DESCRIPTORS_OF_OTHERS) // _DESCRIPTORS_A_BLOB)


class Shelf:
    def __init__(self, store: CacheStore, limits: Limits, dispatch: Dispatcher, tally: Tally) -> None:
        self.store: Final = store
        self._tally = tally
        self.space: Final = Space(store, limits, self._pinned, tally)
        self.pins: Final = Pins(store.objects)
        self.lock: Final = dispatch.lock
        self._dispatch = dispatch
        self._queue = dispatch.queue
        self._blobs: dict[BlobKey, BlobState] = {}
        self._most_writers = _most_writers()
        self._writers = 0
        """How many blobs are open. Changed with the lock held."""
        self.on_hashable: Callable[[BlobState], None] = lambda _blob: None
        """Told, with the lock held, that the block at a blob's hash position has arrived."""
        self.on_verified: Callable[[BlobState], None] = lambda _blob: None
        """Told, without locks, that a blob matches its digest, is on the disk, and its file says so."""
        self.on_cache_gone: Callable[[], None] = lambda: None
        """Told that the cache directory has been removed: only a process with a new one can cache again."""

    # ---- who is held ----

    def blob_locked(self, key: BlobKey) -> BlobState:
        """What is known of a blob; anew if it was set aside. Held from the first reference on."""
        blob = self._blobs.get(key)
        if blob is None or blob.rejected:
            blob = self._blobs[key] = BlobState(key)
        return blob

    def states(self) -> dict[BlobKey, BlobState]:
        """The blobs that are held by somebody now."""
        with self.lock:
            return dict(self._blobs)

    def reference(self, blob: BlobState) -> bool:
        """Keeps a blob open for a check; False when it is no longer held by anybody."""
        with self.lock:
            if not blob.references or blob.writer is None:
                return False
            blob.references += 1
            return True

    def unreference(self, blob: BlobState) -> None:
        with self.lock:
            self.unreference_locked(blob)

    def unreference_locked(self, blob: BlobState) -> None:
        blob.references -= 1
        if blob.references:
            return
        if self._blobs.get(blob.key) is blob:
            del self._blobs[blob.key]
        self._queue.release(blob)  # a hold without a grant would never end
        if blob.writer is not None:
            blob.writer.close()
            blob.writer = None
            self._writers -= 1
        self._dispatch.resume_ahead_locked()  # it can be evicted now

    def _pinned(self) -> frozenset[str]:
        with self.lock:
            held = frozenset(str(key) for key in self._blobs)
        return held | self.pins.blobs

    def touch(self) -> None:
        """Notes that what is mounted is in use now: its workers read without asking."""
        with self.lock:
            writers = [blob.writer for blob in self._blobs.values() if blob.writer and any(m.uses for m in blob.mounts)]
        for writer in writers:
            writer.touch()

    # ---- what is there of it ----

    def prepare(self, blob: BlobState, *, make: bool) -> None:
        """Opens the blob's files, or makes them; leaves the blob `uncached` when the disk has no room for them."""
        if blob.writer is not None or (blob.uncached and self._dispatch.only_demand):
            return
        with self.space.lock:
            if blob.writer is not None or blob.rejected or not blob.references:
                return
            if not make and self.store.stored(blob.key) is None:
                return
        failure: OSError | None = None
        for attempt in (1, 2):
            with self.space.lock:
                if blob.writer is not None:
                    return
                try:
                    writer = self._opened(blob.key)
                except OSError as error:
                    _log.warning("blob_not_cacheable", digest=str(blob.digest), error=str(error))
                    failure = error
                else:
                    if any(mount.uses for mount in list(blob.mounts)):
                        writer.touch()
                    # With this lock only, a blob gets an index.
                    written = proving.written(writer) if blob.chunks is not None else frozenset()
                    with self.lock:
                        if not blob.references or blob.rejected:
                            writer.close()
                            return
                        lost = blob.adopt(writer, written)
                        self._writers += 1
                        if not blob.verified and (blob.blocks_cached or not blob.blocks):
                            self.on_hashable(blob)
                        blob.references += 1
                    writer.record_lost(lost)
                    self.unreference(blob)
                    return
            # Only room can be made; a disk that fails is not mended by emptying it.
            if attempt == 1 and not (failure.errno in FULL and self.space.make_room(BLOCK_BYTES)):
                break
        with self.lock:
            blob.uncached = True
            blob.uncached_by = failure
        if self.store.gone():
            self.on_cache_gone()

    def _opened(self, key: BlobKey) -> BlobWriter:
        if self._writers >= self._most_writers:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.store.open(key)

    def recheck(self, blob: BlobState, block: int, buffer: memoryview) -> bool:
        """Compares a cached block with its checksum; a damaged one is forgotten. Returns whether it is good."""
        while True:
            writer = blob.writer
            losses = blob.losses
            if writer is None or not writer.index[block]:
                return False
            if writer.block_is_sound(block, buffer):
                return True
            if self.forget(blob, block, losses):
                return False

    def forget(self, blob: BlobState, block: int, losses: int) -> bool:
        """Takes a block back: it will be fetched anew when it is wanted, as it is by who waits for the whole.

        `losses`: the blob's count from before the damage was seen. When it has grown since, the block may have come anew: it is
        left, and the answer is False.
        """
        with self.lock:
            writer = blob.writer
            if writer is None or blob.losses != losses:
                return False
            if not writer.index[block]:
                return True
            blob.losses += 1
            self._tally.add(names.DAMAGED)
            _log.warning("block_damaged", digest=str(blob.digest), block=block)
            writer.index.forget(block)
            writer.index.clear_flags(COMPLETE | VERIFIED)
            blob.blocks_cached -= 1
            blob.bytes_cached -= block_length(blob.size, block)
            hashed = blob.verified or block < blob.hashed_blocks  # it may have been hashed by an earlier process
            blob.verified = False
            if hashed:
                blob.hashed_blocks = 0
                blob.hash_epoch += 1
                self.on_hashable(blob)  # up to this block, which is waited for there
            for port, _ in blob.awaiting_whole:
                self._queue.want(port, blob, block, 1, Priority.READAHEAD)
            self._dispatch.kick_locked()
            blob.references += 1
        writer.record(block, 0)
        writer.record_flags()
        self.unreference(blob)
        return True

    def take_unproven(self, blob: BlobState, chunk: int) -> bool:
        """Whether something lies on the disk of this chunk that has not been looked at; the caller does it now."""
        with self.lock:
            found = chunk in blob.unproven
            blob.unproven.discard(chunk)
            return found

    # ---- the whole ----

    def accept(self, blob: BlobState) -> bool:
        """The whole matches its digest and is on the disk. False when a block was taken back meanwhile."""
        with self.lock:
            if blob.writer is None or not blob.complete:
                return False
            writer = blob.writer
            blob.verified = True
            writer.index.set_flags(COMPLETE | VERIFIED)
            told, blob.awaiting_whole = blob.awaiting_whole, {}
        writer.record_flags()
        deliver([(port, protocol.Ready(blob=number, first=0, count=0)) for port, number in told])
        self._tally.add(names.VERIFIED)
        _log.info("blob_verified", digest=str(blob.digest), size=blob.size)
        self.on_verified(blob)
        return True

    def reject(self, blob: BlobState) -> None:
        """The whole does not match its digest: it is set aside, and everybody who may have read of it is told."""
        proven = blob.chunks is not None
        error = Corrupt(
            "the bytes that the registry sent do not match the digest"
            + (", although its chunk index vouches for them" if proven else ""),
            where=str(blob.digest),
            fix="remove the chunk index from the registry, then mount again"
            if proven
            else "the registry or a mirror serves wrong content; remove it there, then mount again",
        )
        outbox: Outbox = []
        with self.space.lock:
            with self.lock:
                writer = blob.writer
                if writer is None:
                    return
                blob.rejected = error
                writer.index.set_flags(REJECTED)
                if self._blobs.get(blob.key) is blob:
                    del self._blobs[blob.key]
                self._queue.drop_blob(blob, demand_only=False)
                blob.waiters.clear()
                blob.awaiting_whole.clear()  # told by what follows
                end_trouble(blob, outbox, healed=False)
                for mount in blob.mounts:
                    numbers = [number for number, other in enumerate(mount.blobs) if other is blob]
                    outbox.extend(
                        (port, protocol.Quarantined(blob=number, fault=error.to_fault()))
                        for port in mount.ports
                        for number in numbers
                    )
            writer.record_flags()
            self.store.quarantine(blob.key)
        self._tally.add(names.REJECTED)
        _log.error("blob_quarantined", digest=str(blob.digest), size=blob.size)
        self.forget_index(blob)
        deliver(outbox)

    def forget_index(self, blob: BlobState) -> None:
        """A chunk index that does not fit is asked for anew at the next mount: it may have been put right."""
        with self.lock:
            keys = proving.remembered(blob)
        for key in keys:
            self.store.objects.remove(proving.CHUNK_INDEXES, key)
