"""From a file's offset to bytes: what is in the cache is served at once, what is not is asked for and waited for.

A read takes one of two ways. *At once*: all blocks are present, their bytes match their checksums (where that has to be asked,
`fuse.cache.blob`), and their pages are in memory; then it costs one preadv into the buffer of the thread that serves it, and
nothing is awaited. Any thread may do that, with a `Server` of its own. *Later*: absent blocks are demanded from the fetcher and
awaited on trio's thread, the disk is read in a thread of a pool. There is no deadline, since a temporary fault never becomes an
error; a permanent one is raised. A waiting read holds nothing, and one that is cancelled leaves nothing. What is lent, because
the cache takes nothing, is memory from when it comes until it is delivered: so reads take turns for that, before they ask
(`LENT_READS`).

The files of a blob may be replaced or set aside while threads read them: they are borrowed for as long as bytes are on their way
(`fuse.worker.blobstate`). Must not know pyfuse3 or errno.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, Protocol

import structlog
import trio

from fuse.cache.blob import CachedBlob
from fuse.errors import Corrupt
from fuse.fetch.protocol import BLOCK_BYTES
from fuse.filesystem.tree import Tree
from fuse.prefetch.beginnings import Beginnings
from fuse.prefetch.streams import MAX_WINDOW_BYTES, BothWays
from fuse.prefetch.touches import Touches
from fuse.worker.blobstate import BlobState
from fuse.worker.served import Served
from fuse.worker.session_client import FetchSession
from fuse.worker.waiters import joined

MAX_READ_BYTES: Final = BLOCK_BYTES
"""The kernel's largest READ with pages of 4 KiB (libfuse's limit of 256 pages); a larger one is read in the other way."""
REPAIRS: Final = 3
"""How often one read lets a damaged block be fetched anew before it gives up on the disk."""
DISK_THREADS: Final = 16
LENT_READS: Final = 16
"""How many reads at a time hold blocks of a cache that takes nothing: each up to two blocks, which it delivers as they are."""
_NO_THREAD: Final = "can't start new thread"
_AGAIN_S: Final = 0.1
_SHIFT: Final = BLOCK_BYTES.bit_length() - 1

Content = bytes | bytearray | memoryview


class Deliver(Protocol):
    """Takes the bytes of a READ, in parts that follow each other; they are not used again."""

    def __call__(self, *parts: Content) -> None: ...


_log = structlog.get_logger()


@dataclass(slots=True)
class Counters:
    """Each thread counts for itself; `Reader.counters` is the sum."""

    reads: int = 0
    bytes_read: int = 0
    at_once: int = 0
    waiting: int = 0
    waited_s: float = 0.0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Counters)))


class Reader:
    """Reads the files of one tree. `touches` notes what is read; `on_open` is called before a file is. `clock` is monotonic."""

    def __init__(
        self,
        tree: Tree,
        session: FetchSession,
        *,
        touches: Touches | None = None,
        on_open: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tree = tree
        self._session = session
        self._clock = clock
        self._touches = touches or Touches(tree.table)
        self._on_open = on_open
        self._streams = BothWays()
        self._beginnings = Beginnings(tree.table)
        self._watching = threading.Lock()
        """Held while the streams and beginnings look at a read."""
        self._disk = trio.CapacityLimiter(DISK_THREADS)
        self._turns = trio.CapacityLimiter(LENT_READS)
        self._served = Served()
        self._own = Counters()
        self._servers: list[Server] = []

    @property
    def counters(self) -> Counters:
        return sum((server.counters for server in self._servers), self._own)

    def set_prefetch(self, full: bool) -> None:
        """Where the background does not fetch everything, a window is also a cost: what it holds at the end is never read."""
        limit = MAX_WINDOW_BYTES
        if not full:
            # A stream's end, with what the kernel reads ahead and the rest of its blocks, stays within 5 % of a small model.
            limit = min(limit, self._tree.table.total_bytes // 64 // BLOCK_BYTES * BLOCK_BYTES)
        self._streams.limit(limit)

    def prepare(self, ino: int) -> None:
        """A file is being opened. Raises Corrupt when its blob is quarantined. On trio's thread."""
        self._on_open()
        extent = self._tree.extent(ino)
        if extent.blob >= 0:
            state = self._session.blobs[extent.blob]
            if state.error is not None:
                raise state.error
            self._session.open(extent.blob)

    def server(self) -> Server:
        """What one more thread reads with. Thread-safe."""
        server = Server(self._tree, self._session, self._look_ahead, self._served, self._touches)
        self._servers.append(server)
        return server

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        """The bytes of file `ino` at `offset`, cut at its end: whichever way, for who has no thread to serve. As `read_later`."""
        if not self._servers:
            self.server()
        server = self._servers[0]
        content = server.read(ino, offset, size)
        if content is not None:
            try:
                return bytes(content)
            finally:
                server.done()
        parts: list[bytes] = []
        await self.read_later(ino, offset, size, lambda *found: parts.extend(map(bytes, found)))
        return b"".join(parts)

    async def read_later(self, ino: int, offset: int, size: int, deliver: Deliver) -> None:
        """Calls `deliver` with the bytes of file `ino` at `offset`, cut at its end, in a thread, once.

        Waits as long as it takes. Raises what the fetcher says of a permanent fault; Corrupt for a quarantined blob.
        """
        blob, start, file_size = self._tree.extent(ino)
        length = min(size, file_size - offset)
        self._own.reads += 1
        if length <= 0 or blob < 0:
            deliver()
            return
        self._own.bytes_read += length
        await self._wait_and_load(self._session.blobs[blob], start + offset, length, deliver)

    def _look_ahead(self, state: BlobState, cached: CachedBlob | None, ino: int, offset: int, length: int) -> None:
        """On any thread; `cached` is borrowed."""
        if self._beginnings.is_news(ino, offset):
            self._note_beginning(cached, ino, offset)
        with self._watching:
            wanted = self._streams.observe(ino, offset, length)
        for ahead, ahead_length in wanted:
            _, start, file_size = self._tree.extent(ino)
            end = min(ahead + ahead_length, file_size)
            if ahead >= end:
                continue
            first = (start + ahead) >> _SHIFT
            count = ((start + end - 1) >> _SHIFT) - first + 1
            if cached is None or not cached.has(first, count):
                self._session.wish(state.index, first, count)

    def _note_beginning(self, cached: CachedBlob | None, ino: int, offset: int) -> None:
        def beginning(count: int) -> bytearray | None:
            start = self._tree.extent(ino).offset
            # Not compared with its checksum: it decides about order only.
            return cached.try_read_nowait(start, count) if cached is not None and cached.has(start >> _SHIFT) else None

        with self._watching:
            header = self._beginnings.header(ino, offset, beginning)
            data = self._beginnings.data(ino, offset)
        if header is not None:
            self._session.wish(header.blob, header.first, header.blocks)
        if data is not None:
            self._session.prefer(data)

    async def _wait_and_load(self, state: BlobState, position: int, length: int, deliver: Deliver) -> None:
        if await self._loaded(state, position, length, deliver, lent=False):
            return
        with _Waiting(self._own, self._clock):
            await self._turns.acquire()
        try:
            await self._loaded(state, position, length, deliver, lent=True)
        finally:
            self._turns.release()

    async def _loaded(self, state: BlobState, position: int, length: int, deliver: Deliver, *, lent: bool) -> bool:
        """Waits and delivers. Without `lent` it takes no loan, and returns False where what is missing may come as one."""
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
                with _Waiting(self._own, self._clock):
                    await session.wait_open(state.index)
                continue
            if session.withholds(state):
                with _Waiting(self._own, self._clock):
                    await session.wait_verified(state.index)
                continue
            if cached is not None and cached.rejected:
                raise Corrupt("this content does not match its digest", where=str(cached.digest))
            for block in blocks if lent else ():
                loan = session.loans.get((state.index, block))
                if loan is not None:
                    loans[block] = loan
            absent = [block for block in blocks if block not in loans and (cached is None or not cached.has(block))]
            if absent and not lent and (cached is None or state.lends):
                return False
            if absent:
                with _Waiting(self._own, self._clock):
                    loans |= await session.wait_blocks(state.index, joined(absent), keeps=lent)
                # Look again: what has come may have been lost by a fetcher that died since.
                continue
            try:
                damaged = await trio.to_thread.run_sync(
                    _load, state, position, length, loans, deliver, limiter=self._disk
                )
            except RuntimeError as error:
                if _NO_THREAD not in str(error):
                    raise
                # A limit of processes is reached: no reason to fail a read.
                _log.warning("read_put_off", reason=_NO_THREAD)
                with _Waiting(self._own, self._clock):
                    await trio.sleep(_AGAIN_S)
                continue
            if damaged is None:
                self._served.note(state, position, length)
                return True
            repairs += 1
            where = self._tree.blob(state.index).digest
            _log.warning("block_damaged", blob=where, block=damaged, repairs=repairs)
            if repairs > REPAIRS:
                raise Corrupt(
                    "the cache disk does not return what was written to it", where=where, fix="replace the cache's disk"
                )
            with _Waiting(self._own, self._clock):
                loans |= await session.wait_repaired(state.index, damaged, keeps=lent)


class Server:
    """One thread's way of reading at once: its buffer, its counters."""

    def __init__(
        self,
        tree: Tree,
        session: FetchSession,
        look_ahead: Callable[[BlobState, CachedBlob | None, int, int, int], None],
        served: Served,
        touches: Touches,
    ) -> None:
        self._tree = tree
        self._session = session
        self._look_ahead = look_ahead
        self._buffer = memoryview(bytearray(MAX_READ_BYTES))
        self._block: memoryview | None = None
        self._served = served
        self._touches = touches
        self._borrowed: tuple[BlobState, int, int] | None = None
        self.counters = Counters()

    def read(self, ino: int, offset: int, size: int) -> memoryview | None:
        """The bytes if they can be had at once, else None. Call `done` when those bytes have been used."""
        blob, start, file_size = self._tree.extent(ino)
        length = min(size, file_size - offset)
        if length <= 0 or blob < 0:
            return self._buffer[:0]
        position = start + offset
        self._touches.note(blob, position >> _SHIFT, (position + length - 1) >> _SHIFT)
        state = self._session.blobs[blob]
        cached = state.borrow()
        if cached is None or not cached.complete:
            self._look_ahead(state, cached, ino, offset, length)
        if cached is None:
            return None
        if length <= MAX_READ_BYTES and self._fill(cached, position, length):
            self._borrowed = state, position, length
            self.counters.reads += 1
            self.counters.bytes_read += length
            self.counters.at_once += 1
            return self._buffer[:length]
        state.give_back()
        return None

    def done(self) -> None:
        """The bytes of the last `read` are where they should be."""
        if self._borrowed is not None:
            state, position, length = self._borrowed
            self._borrowed = None
            state.give_back()
            self._served.note(state, position, length)

    def _fill(self, cached: CachedBlob, position: int, length: int) -> bool:
        """Fills the buffer if that needs neither the fetcher nor the disk."""
        try:
            return self._filled(cached, position, length)
        except OSError:
            return False  # a disk that fails is met, and mended, in the other way

    def _filled(self, cached: CachedBlob, position: int, length: int) -> bool:
        first = position >> _SHIFT
        count = ((position + length - 1) >> _SHIFT) - first + 1
        if cached.rejected or not cached.has(first, count):
            return False
        buffer = self._buffer[:length]
        if cached.is_checked(first, count):
            return cached.try_readinto_nowait(buffer, position)
        if count == 1 and position == first << _SHIFT and length == min(BLOCK_BYTES, cached.size - position):
            # The READ is the block: the common case, and no second look at its bytes is needed.
            return cached.try_readinto_nowait(buffer, position) and cached.check_content(first, buffer)
        if self._block is None:
            self._block = memoryview(bytearray(BLOCK_BYTES))
        at = 0
        while at < length:
            block, inside = divmod(position + at, BLOCK_BYTES)
            whole = self._block[: min(BLOCK_BYTES, cached.size - (block << _SHIFT))]
            if not (cached.try_readinto_nowait(whole, block << _SHIFT) and cached.check_content(block, whole)):
                return False
            part = min(BLOCK_BYTES - inside, length - at)
            buffer[at : at + part] = whole[inside : inside + part]
            at += part
        return True


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


def _load(state: BlobState, position: int, length: int, loans: dict[int, bytes], deliver: Deliver) -> int | None:
    """Runs in a thread: delivers the bytes, from loans and from the disk; or returns the number of a block that is damaged."""
    cached = state.borrow()
    try:
        # What was read, and what was lent, goes to the kernel as it is: a copy of a megabyte costs as much as reading it.
        parts: list[Content] = []
        at = 0
        while at < length:
            block, inside = divmod(position + at, BLOCK_BYTES)
            part = min(BLOCK_BYTES - inside, length - at)
            lent = loans.get(block)
            if lent is not None:
                parts.append(memoryview(lent)[inside : inside + part])
            elif cached is None or not cached.servable:
                return block
            else:
                try:
                    if cached.is_checked(block):
                        parts.append(cached.read(position + at, part))
                    else:
                        whole = cached.read_block(block)
                        if whole is None:
                            return block
                        parts.append(memoryview(whole)[inside : inside + part])
                except (OSError, Corrupt):
                    cached.doubt(block)
                    return block
            at += part
        if state.error is not None:  # set aside while we read: its pages in the kernel are taken back once we have gone
            raise state.error
        deliver(*parts)
        return None
    finally:
        if cached is not None:
            state.give_back()
