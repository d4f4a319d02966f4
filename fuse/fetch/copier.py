"""Makes large members of archives files of their own, so that whoever mounts the model next gets them from the kernel alone.

In the background, once a mounted model is complete and verified, and only into room that is free: nothing is evicted for a copy,
and as much as the copies take must stay free beside them. Whatever is fetched goes first, and the disk is left to others: one
thread of the lowest priority, at a bounded rate, that waits for each block to be written before it reads the next.

Reads only what was verified, and compares it with its checksums once more, so that no damage of the disk is copied. What it does
not finish, for want of room or because the process ends, is begun anew the next time that somebody mounts the model.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from fuse.bucket import Bucket
from fuse.cache.blob import CachedBlob
from fuse.cache.copies import Copies, CopyWriter
from fuse.cache.index import BLOCK_BYTES, block_length, blocks_of
from fuse.cache.keys import BlobKey
from fuse.cache.store import CacheStore
from fuse.errors import Corrupt, WeightlessError
from fuse.fetch.blobs import BlobState
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.shelf import Shelf
from fuse.fetch.wholes import Wholes
from fuse.filesystem import native
from fuse.filesystem.native import Section
from fuse.filesystem.table import Table

BYTES_PER_S: Final = 256 * 1024 * 1024
"""At most. Each byte is read and written, on a disk from which models may be loading."""
_BURST_BYTES: Final = 4 * 1024 * 1024
_REST_S: Final = 1.0
"""After everything is there, and again while something is fetched: whoever mounts and loads comes first."""
_STEP_S: Final = 0.05
_MOST_WAITING: Final = 64
"""Models that are not complete yet; of more, those that came first are given up."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Model:
    """What to make of one tree."""

    keys: tuple[BlobKey, ...]
    sections: tuple[Section, ...]
    """Of the blobs `keys`."""


class _Ended(Exception):
    """The process ends."""


class Copier(threading.Thread):
    def __init__(self, shelf: Shelf, dispatch: Dispatcher) -> None:
        super().__init__(name="copier", daemon=True)
        self._store: CacheStore = shelf.store
        self._space = shelf.space
        self._dispatch = dispatch
        self._wholes = Wholes(shelf)
        self._copies = Copies(shelf.store.objects)
        self._bucket = Bucket(BYTES_PER_S, _BURST_BYTES, time.monotonic())
        self._news = threading.Condition()
        self._asked: deque[tuple[Table, tuple[BlobKey, ...]]] = deque()
        self._verified: deque[BlobKey] = deque()
        self._waiting: dict[_Model, set[BlobKey]] = {}
        """Models, and which of their blobs are not complete and verified yet. This thread alone touches it."""
        self._end = threading.Event()
        shelf.on_verified = self._blob_verified

    def consider(self, table: Table, keys: list[BlobKey]) -> None:
        """A mount of this tree would be native the next time if the parts that need it were files. Returns at once."""
        with self._news:
            self._asked.append((table, tuple(keys)))
            self._news.notify()

    def _blob_verified(self, blob: BlobState) -> None:
        """Called without locks; also for what no archive is."""
        with self._news:
            self._verified.append(blob.key)
            self._news.notify()

    def close(self) -> None:
        with self._news:
            self._end.set()
            self._news.notify()

    def run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with suppress(_Ended):
            while True:
                model = self._next()
                try:
                    self._make(model)
                except (OSError, WeightlessError) as error:
                    _log.warning("copies_not_made", blobs=len(model.keys), error=str(error))
                except _Ended:
                    raise
                except Exception:  # noqa: BLE001  (the edge of a thread)
                    _log.exception("copying_broken")

    def _next(self) -> _Model:
        """A model that is complete and verified, of which something has to be copied; waits for one."""
        while True:
            ready = next((model for model, missing in self._waiting.items() if not missing), None)
            if ready is not None:
                del self._waiting[ready]
                return ready
            with self._news:
                self._news.wait_for(lambda: self._asked or self._verified or self._end.is_set())
                if self._end.is_set():
                    raise _Ended
                asked, verified = list(self._asked), list(self._verified)
                self._asked.clear()
                self._verified.clear()
            for table, keys in asked:
                self._enter(table, keys)
            for missing in self._waiting.values():
                missing.difference_update(verified)

    def _enter(self, table: Table, keys: tuple[BlobKey, ...]) -> None:
        sections = native.sections(table)
        if sections:
            # What is verified after this look is told after it, too.
            self._waiting[_Model(keys, sections)] = {key for key in keys if not self._wholes.has((key,))}
        while len(self._waiting) > _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]

    # ---- one model ----

    def _make(self, model: _Model) -> None:
        if self._end.wait(_REST_S):
            raise _Ended
        if not self._wholes.has(model.keys):
            return  # evicted meanwhile, or found damaged
        there = self._wholes.copies(model.sections, model.keys)
        wanted = [section for section in model.sections if section not in there]
        wanted_bytes = sum(section.size for section in wanted)
        if not wanted:
            return
        if not self._space.has_free(2 * wanted_bytes):
            _log.info("copies_not_made", bytes=wanted_bytes, reason="too little of the disk, or of the quota, is free")
            return
        begun = time.monotonic()
        for section in wanted:
            source = model.keys[section.blob]
            if not self._copy(source, section):
                return
        _log.info("copies_made", copies=len(wanted), bytes=wanted_bytes, seconds=round(time.monotonic() - begun, 3))

    def _copy(self, source: BlobKey, section: Section) -> bool:
        """Whether the part is a file now. Raises OSError, Corrupt."""
        try:
            with ExitStack() as stack:
                blob = stack.enter_context(closing(self._opened(source)))
                writer = stack.enter_context(closing(CopyWriter(self._store, source, section.size)))
                for content in self._content(blob, section):
                    if not self._space.take_free(len(content)):
                        _log.info("copies_not_made", bytes=section.size, reason="the room that was free is used now")
                        return False
                    try:
                        writer.append(content)
                    finally:
                        self._space.settle(len(content), len(content))
                key = writer.seal()
                with self._space.lock:
                    if self._store.stored(source) is None:
                        return False  # a copy without its blob is of no use to anybody
                    writer.publish(key)
                self._remember(source, section, key)
        finally:
            self._space.recount()
        return True

    def _remember(self, source: BlobKey, section: Section, key: BlobKey) -> None:
        known = {place: copy for place, copy in self._copies.of(source).items() if self._wholes.has((copy,))}
        self._copies.remember(source, known | {(section.offset, section.size): key})

    def _opened(self, key: BlobKey) -> CachedBlob:
        data, index = self._store.paths(key)
        flags = os.O_RDONLY | os.O_CLOEXEC
        fd = os.open(data, flags)
        try:
            index_fd = os.open(index, flags)
        except BaseException:
            os.close(fd)
            raise
        return CachedBlob(fd, index_fd)

    def _content(self, blob: CachedBlob, section: Section) -> Iterator[memoryview]:
        """The part's bytes, a block of the blob at a time, when it is their turn; each is used before the next is asked for."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        first, count = blocks_of(section.offset, section.size)
        for block in range(first, first + count):
            self._take_turn()
            begin = block * BLOCK_BYTES
            content = buffer[: block_length(blob.size, block)]
            if not blob.read_quietly(content, begin) or not blob.check_content(block, content):
                raise Corrupt(f"block {block} of a verified blob is damaged on the disk", where=str(blob.digest))
            yield content[max(0, section.offset - begin) : section.offset + section.size - begin]

    def _take_turn(self) -> None:
        """Waits while anything is fetched, and for the rate. Raises _Ended."""
        while self._dispatch.busy:
            if self._end.wait(_STEP_S):
                raise _Ended
        if self._end.wait(self._bucket.wait_s(time.monotonic())):
            raise _Ended
        self._bucket.draw(BLOCK_BYTES, time.monotonic())
