"""Comparing whole blobs with their digests, in the background: one thread at the lowest priority.

Blocks are hashed in order as they come. Each is first compared with its own checksum: one that a power loss tore is forgotten
and fetched anew, and only what the registry really sent can condemn a blob. A blob that matches is marked verified once it has
reached the disk; one that does not is set aside, and everybody who uses it is told.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from fuse.cache.index import BLOCK_BYTES, entry_of
from fuse.cache.quiet import read_quietly
from fuse.cache.writer import BlobWriter
from fuse.fetch.blobs import BlobState
from fuse.fetch.engine import Engine
from fuse.fetch.spare import Spare

if TYPE_CHECKING:
    from hashlib import _Hash

_BATCH_BLOCKS: Final = 4
"""Read and hashed with one call each: a thread of low priority should rarely ask for the interpreter's lock."""
_TURN_BLOCKS: Final = 64
"""After so many blocks another blob has its turn."""
_FEW_CORES: Final = 4
_DEFER_S: Final = 20.0
"""On a machine of few cores hashing leaves them to transfers and loads that need them, for so long at most."""
_DEFER_STEP_S: Final = 0.1
_SYNC_AGAIN_S: Final = 30.0
"""After a disk has refused to confirm what was written."""

_log = structlog.get_logger(__name__)


class Verifier(threading.Thread):
    def __init__(self, engine: Engine) -> None:
        super().__init__(name="verifier", daemon=True)
        self._engine = engine
        self._waiting: deque[BlobState] = deque()
        self._listed: set[BlobState] = set()
        self._work = threading.Condition(threading.Lock())
        self._closed = False
        self._end = threading.Event()
        self._hashes: dict[BlobState, tuple[int, _Hash]] = {}
        self._buffer: memoryview | None = None
        self._deferred_s = 0.0
        self._spare = Spare()
        self._unsynced: dict[BlobState, float] = {}
        """Blobs that match, but may not be on the disk, and when to look again. The verifier's thread alone touches it."""
        engine.shelf.on_hashable = self.look_at

    def look_at(self, blob: BlobState) -> None:
        """There is something to hash in `blob`. Called with the engine's lock held."""
        with self._work:
            if blob not in self._listed:
                self._listed.add(blob)
                self._waiting.append(blob)
                self._work.notify()

    def close(self) -> None:
        with self._work:
            self._closed = True
            self._end.set()
            self._work.notify()

    def run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (blob := self._next()) is not None:
            if not self._engine.shelf.reference(blob):
                self._hashes.pop(blob, None)
                continue
            try:
                if not blob.awaiting_whole:
                    self._defer(blob)
                if self._advance(blob):
                    self.look_at(blob)
            except Exception:  # noqa: BLE001  (the edge of a thread)
                _log.exception("verification_broken", digest=str(blob.digest))
            finally:
                self._engine.shelf.unreference(blob)

    def _defer(self, blob: BlobState) -> None:
        """Lets transfers go first where they and hashing would share one or two cores, and readers of what has come.

        What is hashed in one turn is done sooner than it is put off for readers.
        """
        if len(os.sched_getaffinity(0)) > _FEW_CORES:
            return
        began = time.monotonic()
        while self._deferred_s + time.monotonic() - began < _DEFER_S and (
            self._engine.dispatch.crowded or (blob.blocks > _TURN_BLOCKS and not self._spare.room())
        ):
            if self._end.wait(_DEFER_STEP_S):
                break
        self._deferred_s += time.monotonic() - began

    def _next(self) -> BlobState | None:
        with self._work:
            while not self._waiting and not self._closed:
                self._buffer = None
                self._deferred_s = 0.0
                due = min(self._unsynced.values(), default=None)
                if due is not None and due <= time.monotonic():
                    self._look_again()
                    continue
                self._work.wait(None if due is None else due - time.monotonic())
            if self._closed:
                return None
            blob = self._waiting.popleft()
            self._listed.discard(blob)
        for other in [held for held in self._hashes if not held.references]:
            del self._hashes[other]
        return blob

    def _look_again(self) -> None:
        """Lists what was not confirmed, to be hashed from the disk. The caller holds the condition."""
        now = time.monotonic()
        for blob in [blob for blob, due in self._unsynced.items() if due <= now]:
            del self._unsynced[blob]
            if blob not in self._listed:
                self._listed.add(blob)
                self._waiting.append(blob)

    def _advance(self, blob: BlobState) -> bool:
        """Hashes what has come, up to a turn's worth; True when there is more."""
        writer = blob.writer
        if writer is None or blob.verified or blob.rejected:
            return False
        epoch, hasher = self._hashes.get(blob, (-1, None))
        if hasher is None or epoch != blob.hash_epoch:
            with self._engine.lock:
                epoch, hasher = blob.hash_epoch, blob.digest.hasher()
                blob.hashed_blocks = 0
            self._hashes[blob] = (epoch, hasher)
        end = min(blob.blocks, blob.hashed_blocks + _TURN_BLOCKS)
        while (first := blob.hashed_blocks) < end:
            count = min(_BATCH_BLOCKS, writer.index.first_absent(first, end) - first)
            if count <= 0 or not self._hash(blob, writer, hasher, first, count):
                break
            with self._engine.lock:
                if blob.hash_epoch != epoch:
                    return True
                blob.hashed_blocks = first + count
        if blob.hashed_blocks < blob.blocks:
            with self._engine.lock:
                # Whether it came in the meantime, before the position said that it is waited for.
                return bool(writer.index[blob.hashed_blocks])
        self._conclude(blob, writer, hasher)
        return False

    def _hash(self, blob: BlobState, writer: BlobWriter, hasher: _Hash, first: int, count: int) -> bool:
        """Hashes blocks that are there; False when one is damaged, which is forgotten then."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_BATCH_BLOCKS * BLOCK_BYTES))
        offset = first * BLOCK_BYTES
        length = min(count * BLOCK_BYTES, blob.size - offset)
        content = self._buffer[:length]
        losses = blob.losses
        # Before the bytes are read: a block that is being written anew meanwhile must not be taken for a damaged one.
        entries = [writer.index[block] for block in range(first, first + count)]
        if 0 in entries:
            return False
        try:
            whole = read_quietly(writer.fd, content, offset)
        except OSError as error:
            _log.warning("blocks_unreadable", digest=str(blob.digest), first=first, count=count, error=str(error))
            whole = False
        if not whole:
            # Which of them it is, each tells; as many as can be read are hashed in the next turn.
            for block in range(first, first + count):
                self._engine.shelf.recheck(blob, block, content[:BLOCK_BYTES])
            return False
        for block in range(first, first + count):
            start = (block - first) * BLOCK_BYTES
            if entry_of(content[start : start + BLOCK_BYTES]) != entries[block - first]:
                self._engine.shelf.forget(blob, block, losses)
                return False
        hasher.update(content)
        return True

    def _conclude(self, blob: BlobState, writer: BlobWriter, hasher: _Hash) -> None:
        del self._hashes[blob]
        if hasher.hexdigest() != blob.digest.hex:
            self._engine.shelf.reject(blob)
            return
        try:
            writer.sync()
        except OSError as error:
            # The kernel forgets pages that it could not write: what the disk really has must be read, and hashed, again.
            _log.warning("blob_not_synced", digest=str(blob.digest), error=str(error))
            with suppress(OSError):
                os.posix_fadvise(writer.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self._unsynced[blob] = time.monotonic() + _SYNC_AGAIN_S
            return
        self._engine.shelf.accept(blob)
