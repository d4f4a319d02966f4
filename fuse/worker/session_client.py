"""The worker's side of its session with the fetcher: what is asked, what comes, and what survives the fetcher's death.

Reads call synchronous methods and await events; one task sends and one receives. Requests are sent in the order demand, then
read-ahead, then background, so that no read waits behind a prefetch. When the socket closes the fetcher has died: all that is
asked stays asked, and is asked again on the next socket. Everything here runs on trio's thread, but what
says otherwise.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import structlog
import trio

from fuse import wire
from fuse.artifact.profile import Runs
from fuse.cache.blob import CachedBlob
from fuse.errors import Corrupt, Fault, Unverified, WeightlessError, from_fault
from fuse.fetch import protocol
from fuse.prefetch.order import Range
from fuse.worker.background import Background
from fuse.worker.blobstate import BlobState
from fuse.worker.waiters import Run, WaitTable

KEPT_LOANS: Final = 16
"""Blocks of a cache that is full, kept for the next READ of the same megabyte (the kernel may ask in pieces of 128 KiB)."""
MAX_WISHES: Final = 256
"""Read-ahead that could not be sent yet; more would only be out of date."""

VERIFIED_POLL_S: Final = 1.0
"""A fetcher of an older version does not say when a blob is verified; the index does."""
WHOLE_PATIENCE_S: Final = 10.0
"""After so long the volume's condition says what a strict mount's readers wait for."""
_WITHHELD: Final = Unverified(
    "reads wait until the whole of their file has come and been verified (verify: strict)"
).to_fault()

_FDS_SPACE: Final = socket.CMSG_SPACE(4 * wire.MAX_FDS)

_log = structlog.get_logger()


class FetchSession:
    """`on_condition` is told the fault of the moment (None: all is well) and whether it is permanent.

    `background` plans what is fetched that nobody asked for, by what an earlier load has touched.
    """

    def __init__(
        self,
        blobs: int,
        *,
        withheld: frozenset[int] = frozenset(),
        background: Callable[[Runs], Iterator[Range]],
        on_condition: Callable[[Fault | None, bool], None],
        on_quarantine: Callable[[int], None],
    ) -> None:
        settled = threading.Condition(threading.Lock())
        self.blobs: Sequence[BlobState] = tuple(
            BlobState(index, settled, strict=index in withheld) for index in range(blobs)
        )
        self._late: set[int] = set()
        """Blobs whose readers have waited long for the whole."""
        self.waits = WaitTable()
        self.loans: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._background = Background(background)
        self._learns = False
        """The fetcher of this session takes what a load has touched."""
        self._on_condition = on_condition
        self._on_quarantine = on_quarantine
        self._decoder: msgspec.json.Decoder[protocol.ToWorker] = msgspec.json.Decoder(protocol.ToWorker)
        self._urgent: deque[protocol.FromWorker] = deque()
        self._wishes: deque[protocol.Want] = deque(maxlen=MAX_WISHES)
        self._wake = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._stalled: Fault | None = None
        self._failures: dict[int, Fault] = {}
        self._told: tuple[Fault | None, bool] = (None, False)

    # ---- for reads ----

    def open(self, blob: int) -> None:
        """Asks for the cache files of `blob`, once."""
        state = self.blobs[blob]
        if not state.asked:
            state.asked = True
            state.opened = trio.Event()
            state.refusal = state.error
            self._post(protocol.Open(blob=blob, live=state.strict))

    async def wait_open(self, blob: int) -> None:
        """Waits until `blob` can be read, be it from loans. Raises the fault when it never can."""
        self.open(blob)
        state = self.blobs[blob]
        await state.opened.wait()
        if state.refusal is not None and state.cached is None:
            raise state.refusal

    async def wait_blocks(self, blob: int, runs: Sequence[Run], *, keeps: bool = True) -> dict[int, bytes]:
        """Waits until these blocks have come; returns those that are only lent. Raises the fault when they never will.

        Without `keeps` it returns none of those: they are memory, which the caller has to bound.
        """
        wait, unasked = self.waits.add(blob, runs, keeps=keeps)
        for first, count in unasked:
            self._post(protocol.Want(blob=blob, first=first, count=count, priority="demand"))
        try:
            await wait.done.wait()
        finally:
            self.waits.discard(wait)
        if wait.error is not None:
            raise wait.error
        return wait.loans

    def withholds(self, state: BlobState) -> bool:
        """Whether nothing of the blob may be served yet (`verify: strict`)."""
        return state.strict and not state.proven and (state.cached is None or not state.cached.servable)

    async def wait_verified(self, blob: int) -> None:
        """Waits a while for the whole of a blob that is withheld, and has it fetched; the caller looks again afterwards.

        Raises the fault when it will never be there.
        """
        state = self.blobs[blob]
        if state.whole is None:
            state.whole, state.whole_error, state.whole_asked_at = trio.Event(), None, trio.current_time()
            self._want_whole(state)
        answered = state.whole
        with trio.move_on_after(VERIFIED_POLL_S):
            await answered.wait()
        if not answered.is_set():
            if trio.current_time() - state.whole_asked_at > WHOLE_PATIENCE_S and blob not in self._late:
                self._late.add(blob)
                self._tell()
            if state.cached is not None and state.cached.complete:
                self._open_again(state)
            return
        if state.whole is answered:
            state.whole = None
        if state.whole_error is not None:
            raise state.whole_error
        if self.withholds(state):  # verified, but not by the files that we have, if we have any
            self._open_again(state)
            await trio.sleep(VERIFIED_POLL_S)

    def _open_again(self, state: BlobState) -> None:
        """For files that show that the blob is verified; whether they come is seen at the next look."""
        self._post(protocol.Open(blob=state.index, live=True))

    async def wait_repaired(self, blob: int, block: int, *, keeps: bool = True) -> dict[int, bytes]:
        """As `wait_blocks` for a block whose bytes are damaged."""
        self._post(protocol.Damaged(blob=blob, first=block, count=1))
        return await self.wait_blocks(blob, [(block, 1)], keeps=keeps)

    def wish(self, blob: int, first: int, count: int) -> None:
        """Asks for blocks that will be read soon; there is no answer. From any thread."""
        self._wishes.append(protocol.Want(blob=blob, first=first, count=count, priority="readahead"))
        self._awake_soon()

    def prefer(self, found: Range) -> None:
        """A load has come to this: with prefetch it is fetched before the rest. From any thread."""
        if self._background.prefer(found):
            self._awake_soon()

    def _awake_soon(self) -> None:
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._awake, idempotent=True)

    # ---- for the worker ----

    def tell_learned(self, runs: Runs) -> bool:
        """A load has touched these blocks. False when there is no fetcher, or none that wants to know."""
        if self._learns:
            self._post(protocol.Learned(runs=runs))
        return self._learns

    def set_prefetch(self, on: bool) -> None:
        """Whether the rest is fetched in the background; what was asked already is not taken back."""
        self._background.turn(on)
        self._wake.set()

    def plan_anew(self) -> None:
        """`background` plans otherwise from now on."""
        self._background.plan_anew()
        self._wake.set()

    async def run(self, sock: socket.socket, *, last_words: Callable[[], Runs] = tuple) -> None:
        """Speaks with one fetcher until it is gone. Closes `sock`.

        `last_words`: what is still to be told of a load when this ends.
        """
        self._token = trio.lowlevel.current_trio_token()
        self._stalled = None
        self._tell()
        with trio.socket.from_stdlib_socket(sock) as stream:
            # What the fetcher says first is there already, for it was said before this socket was handed over: so the
            # background begins in the right order, and nobody waits for a fetcher that says nothing.
            self._learns = False
            self._receive_nowait(sock)
            self._ask_again()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, stream)
                    await self._receive(stream)
                    nursery.cancel_scope.cancel()
            finally:
                runs = last_words() if self._learns else ()
                self._learns = False
                if runs:
                    # Nothing is waited for any more: it is only a hint.
                    with suppress(OSError):
                        sock.send(wire.encode(protocol.Learned(runs=runs)))
        _log.info("fetcher_gone", waiting_blocks=len(self.waits))

    def close(self) -> None:
        for state in self.blobs:
            state.replace(None)

    # ---- sending ----

    def _ask_again(self) -> None:
        self._urgent.clear()
        self._wishes.clear()
        for state in self.blobs:
            if state.asked and state.error is None:
                self._urgent.append(protocol.Open(blob=state.index, live=state.strict))
        for state in self.blobs:
            if state.whole is not None:
                self._want_whole(state)
        for blob, (first, count) in self.waits.outstanding():
            self._urgent.append(protocol.Want(blob=blob, first=first, count=count, priority="demand"))
        self._background.start_over()

    def _want_whole(self, state: BlobState) -> None:
        blocks = state.cached.blocks if state.cached is not None else 1
        self._post(protocol.Want(blob=state.index, first=0, count=blocks, priority="readahead", whole=True))

    def _whole_answered(self, state: BlobState, error: WeightlessError | None) -> None:
        state.whole_error = error
        if state.whole is not None:
            state.whole.set()
        self._late.discard(state.index)

    def _post(self, message: protocol.FromWorker) -> None:
        self._urgent.append(message)
        self._wake.set()

    def _awake(self) -> None:
        self._wake.set()

    def _next(self) -> protocol.FromWorker | None:
        if self._urgent:
            return self._urgent.popleft()
        if self._wishes:
            return self._wishes.popleft()
        return self._background.next()

    async def _send(self, stream: trio.socket.SocketType) -> None:
        # A fetcher that has died is seen by the receiver; what could not be sent is asked again.
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                message = self._next()
                if message is None:
                    self._wake = trio.Event()
                    await self._wake.wait()
                else:
                    await stream.send(wire.encode(message))

    # ---- receiving ----

    async def _receive(self, stream: trio.socket.SocketType) -> None:
        while True:
            try:
                packet, ancillary, _, _ = await stream.recvmsg(
                    wire.MAX_MESSAGE_BYTES, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                return
            if not packet:
                return
            self._take_packet(packet, ancillary)

    def _receive_nowait(self, sock: socket.socket) -> None:
        """What has come already. The end of the session is left for `_receive` to see: it comes again."""
        with suppress(BlockingIOError, ConnectionResetError):
            while True:
                packet, ancillary, _, _ = sock.recvmsg(wire.MAX_MESSAGE_BYTES, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
                if not packet:
                    return
                self._take_packet(packet, ancillary)

    def _take_packet(self, packet: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        fds = wire.fds_of(ancillary)
        try:
            self._take(self._decoder.decode(packet), fds)
        except msgspec.DecodeError as error:
            # A newer fetcher may say what we do not know; what we need from it, we ask for again after its restart.
            _log.error("fetcher_message_unknown", error=error)
        finally:
            wire.close_all(fds)

    def _take(self, message: protocol.ToWorker, fds: list[int]) -> None:
        """Applies one message. Descriptors that it keeps are removed from `fds`."""
        match message:
            case protocol.Ready(blob=blob, count=0):
                self._whole_answered(self.blobs[blob], None)
                self._tell()
            case protocol.Ready(blob=blob, first=first, count=count):
                state = self.blobs[blob]
                if state.cached is not None:
                    state.cached.note_arrived(first, count)
                elif state.uncached:
                    # There is room again: the reader that wakes now asks for the files.
                    state.asked = state.uncached = False
                self.waits.arrived(blob, first, count)
                if self._failures.pop(blob, None) is not None and state.error is None:
                    self._tell()
            case protocol.Opened(blob=blob, proven=proven):
                self.blobs[blob].proven = proven
                self._opened(self.blobs[blob], fds)
            case protocol.Loan(blob=blob, block=block) if fds and self.withholds(self.blobs[blob]):
                # Asked of a fetcher that could prove it, and sent by one that cannot: the reader looks again, and waits.
                self.waits.arrived(blob, block, 1)
            case protocol.Loan(blob=blob, block=block) if fds:
                content = wire.read_whole(fds[0], protocol.BLOCK_BYTES)
                self.blobs[blob].lends = True
                self.loans[blob, block] = content
                if len(self.loans) > KEPT_LOANS:
                    self.loans.popitem(last=False)
                self.waits.lent(blob, block, content)
            case protocol.Failed(blob=blob, first=first, count=count, fault=fault):
                self._failed(self.blobs[blob], first, count, fault)
            case protocol.Quarantined(blob=blob, fault=fault):
                self._quarantined(self.blobs[blob], fault)
            case protocol.Stalled(fault=fault):
                self._stalled = fault
                self._tell()
            case protocol.Order(runs=runs):
                self._learns = True
                self._background.reorder(runs)
                self._wake.set()
            case _:
                _log.error("fetcher_message_incomplete", message=type(message).__name__)

    def _opened(self, state: BlobState, fds: list[int]) -> None:
        if state.error is not None:
            return
        if state.cached is not None:
            state.cached.withheld = state.strict and not state.proven
        if len(fds) < 2:
            state.uncached = state.cached is None
            state.opened.set()
            return
        identity = tuple((found.st_dev, found.st_ino) for found in map(os.fstat, fds[:2]))
        if state.cached is None or identity != state.identity or not state.cached.servable:
            # The constructor owns both from here on, whatever happens.
            data, index = fds.pop(0), fds.pop(0)
            try:
                cached = CachedBlob(data, index)
            except Corrupt as error:
                self._failed(state, 0, 0, error.to_fault())
                return
            cached.withheld = state.strict and not state.proven
            state.replace(cached)
            state.identity = identity
            state.uncached = state.lends = False
        state.opened.set()

    def _failed(self, state: BlobState, first: int, count: int, fault: Fault) -> None:
        error = from_fault(fault)
        _log.error("blob_failed", blob=state.index, first=first, count=count, error=error)
        self.waits.failed(state.index, first, count, error)
        if count == 0:
            # Whoever waits for the files learns it too; the next reader asks anew.
            state.asked = state.cached is not None
            state.refusal = error
            state.opened.set()
            self._whole_answered(state, error)
        self._failures[state.index] = fault
        self._tell()

    def _quarantined(self, state: BlobState, fault: Fault) -> None:
        state.error = from_fault(fault)
        _log.error("blob_quarantined", blob=state.index, error=state.error)
        state.refusal = state.error
        state.replace(None)
        state.opened.set()
        self._whole_answered(state, state.error)
        for key in [key for key in self.loans if key[0] == state.index]:
            del self.loans[key]
        self.waits.failed(state.index, 0, 0, state.error)
        self._failures[state.index] = fault
        self._tell()
        self._on_quarantine(state.index)

    def _tell(self) -> None:
        failure = next(iter(self._failures.values()), None)
        news = (failure or self._stalled or (_WITHHELD if self._late else None), failure is not None)
        if news != self._told:
            self._told = news
            self._on_condition(*news)
