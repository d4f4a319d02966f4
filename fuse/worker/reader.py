"""From a file's offset to bytes: what is in the cache is served at once, what is not is asked for and waited for.

A read takes one of two ways. *At once*: all blocks are present, their checksums have been seen to match (or match now), and
their pages are in memory; then it costs one preadv into a buffer that all such reads share, and nothing is awaited.
*Patiently*: absent blocks are demanded from the fetcher and awaited, the disk is read in a thread. There is no deadline,
since a temporary fault never becomes an error; a permanent one is raised. A waiting read holds nothing, and one that is
cancelled leaves nothing.

Must not know pyfuse3 or errno. Runs on trio's thread but for `_load`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from fuse.cache.blob import CachedBlob
from fuse.errors import Corrupt
from fuse.fetch.protocol import BLOCK_BYTES
from fuse.filesystem.tree import Tree
from fuse.prefetch.streams import MAX_WINDOW_BYTES, Streams
from fuse.worker.session_client import BlobState, FetchSession
from fuse.worker.waiters import joined

MAX_READ_BYTES: Final = 4 * BLOCK_BYTES
"""More than any kernel asks for in one READ (pyfuse3's limit is 1 MiB of 4 KiB pages)."""
REPAIRS: Final = 3
"""How often one read lets a damaged block be fetched anew before it gives up on the disk."""
DISK_THREADS: Final = 16
_SHIFT: Final = BLOCK_BYTES.bit_length() - 1

_log = structlog.get_logger()


@dataclass(slots=True)
class Counters:
    reads: int = 0
    bytes_read: int = 0
    at_once: int = 0
    waiting: int = 0
    waited_s: float = 0.0


class Reader:
    """Reads the files of one tree. `clock` is monotonic."""

    def __init__(self, tree: Tree, session: FetchSession, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tree = tree
        self._session = session
        self._clock = clock
        self._streams = Streams()
        self._disk = trio.CapacityLimiter(DISK_THREADS)
        self._scratch = memoryview(bytearray(MAX_READ_BYTES))
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self.counters = Counters()

    def set_prefetch(self, full: bool) -> None:
        """Where the background does not fetch everything, a window is also a cost: what it holds at the end is never read."""
        limit = MAX_WINDOW_BYTES
        if not full:
            # A stream's end, with what the kernel reads ahead and the rest of its blocks, stays within 5 % of a small model.
            limit = min(limit, self._tree.table.total_bytes // 64 // BLOCK_BYTES * BLOCK_BYTES)
        self._streams.max_window_bytes = limit

    def prepare(self, ino: int) -> None:
        """A file is being opened. Raises Corrupt when its blob is quarantined."""
        extent = self._tree.extent(ino)
        if extent.blob >= 0:
            state = self._session.blobs[extent.blob]
            if state.error is not None:
                raise state.error
            self._session.open(extent.blob)

    async def read(self, ino: int, offset: int, size: int) -> bytes | bytearray | memoryview:
        """The bytes of file `ino` at `offset`, cut at its end.

        The result may be a view of a shared buffer: it is valid until the caller awaits, and must be used or copied before.
        Raises what the fetcher says of a permanent fault; Corrupt for a quarantined blob.
        """
        blob, start, file_size = self._tree.extent(ino)
        length = min(size, file_size - offset)
        if length <= 0 or blob < 0:
            return b""
        counters = self.counters
        counters.reads += 1
        counters.bytes_read += length
        state = self._session.blobs[blob]
        cached = state.cached
        if cached is None or not cached.complete:
            self._look_ahead(state, ino, offset, length)
        if cached is not None and self._at_once(cached, start + offset, length):
            counters.at_once += 1
            return self._scratch[:length]
        return await self._patiently(state, start + offset, length)

    def _at_once(self, cached: CachedBlob, position: int, length: int) -> bool:
        """Fills the shared buffer if that needs neither the fetcher nor the disk."""
        first = position >> _SHIFT
        count = ((position + length - 1) >> _SHIFT) - first + 1
        if cached.rejected or not cached.has(first, count):
            return False
        buffer = self._scratch[:length]
        if not cached.is_checked(first, count):
            if count == 1 and position == first << _SHIFT and length == min(BLOCK_BYTES, cached.size - position):
                # The READ is the block: the common case, and no second look at its bytes is needed.
                return cached.try_readinto_nowait(buffer, position) and cached.check_content(first, buffer)
            for block in range(first, first + count):
                whole = self._block[: min(BLOCK_BYTES, cached.size - (block << _SHIFT))]
                if not cached.is_checked(block) and not (
                    cached.try_readinto_nowait(whole, block << _SHIFT) and cached.check_content(block, whole)
                ):
                    return False
        return cached.try_readinto_nowait(buffer, position)

    def _look_ahead(self, state: BlobState, ino: int, offset: int, length: int) -> None:
        for ahead, ahead_length in self._streams.observe(ino, offset, length):
            _, start, file_size = self._tree.extent(ino)
            end = min(ahead + ahead_length, file_size)
            if ahead >= end:
                continue
            first = (start + ahead) >> _SHIFT
            count = ((start + end - 1) >> _SHIFT) - first + 1
            if state.cached is None or not state.cached.has(first, count):
                self._session.wish(state.index, first, count)

    async def _patiently(self, state: BlobState, position: int, length: int) -> bytes | bytearray:
        session = self._session
        first = position >> _SHIFT
        blocks = range(first, ((position + length - 1) >> _SHIFT) + 1)
        repairs = 0
        loans: dict[int, bytes] = {}
        while True:
            if state.error is not None:
                raise state.error
            cached = state.cached
            if cached is None and not state.uncached:
                with _Waiting(self.counters, self._clock):
                    await session.wait_open(state.index)
                continue
            if cached is not None and cached.rejected:
                raise Corrupt("this content does not match its digest", where=str(cached.digest))
            for block in blocks:
                lent = session.loans.get((state.index, block))
                if lent is not None:
                    loans[block] = lent
            absent = [block for block in blocks if block not in loans and (cached is None or not cached.has(block))]
            if absent:
                with _Waiting(self.counters, self._clock):
                    loans |= await session.wait_blocks(state.index, joined(absent))
                # Look again: what has come may have been lost by a fetcher that died since.
                continue
            state.users += 1
            try:
                content = await trio.to_thread.run_sync(_load, cached, position, length, loans, limiter=self._disk)
            finally:
                state.users -= 1
                state.close_retired()
            if isinstance(content, bytearray):
                return content
            repairs += 1
            where = self._tree.blob(state.index).digest
            _log.warning("block_damaged", blob=where, block=content, repairs=repairs)
            if repairs > REPAIRS:
                raise Corrupt("the cache disk does not return what was written to it", where=where)
            with _Waiting(self.counters, self._clock):
                loans |= await session.wait_repaired(state.index, content)


class _Waiting:
    """Counts a read as waiting while it is in the body."""

    __slots__ = ("_began", "_clock", "_counters")

    def __init__(self, counters: Counters, clock: Callable[[], float]) -> None:
        self._counters = counters
        self._clock = clock

    def __enter__(self) -> None:
        self._counters.waiting += 1
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        self._counters.waiting -= 1
        self._counters.waited_s += self._clock() - self._began


def _load(cached: CachedBlob | None, position: int, length: int, loans: dict[int, bytes]) -> bytearray | int:
    """Runs in a thread: the bytes, from loans and from the disk, or the number of a block that is damaged."""
    content = bytearray(length)
    at = 0
    while at < length:
        block, inside = divmod(position + at, BLOCK_BYTES)
        part = min(BLOCK_BYTES - inside, length - at)
        lent = loans.get(block)
        if lent is not None:
            content[at : at + part] = lent[inside : inside + part]
        elif cached is None:
            return block
        else:
            try:
                if not cached.check(block):
                    return block
                content[at : at + part] = cached.read(position + at, part)
            except (OSError, Corrupt):
                cached.doubt(block)
                return block
        at += part
    return content
