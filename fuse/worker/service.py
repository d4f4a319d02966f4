"""One worker's life: the parts put together, and the talk with the privileged side that started it.

Everything is a task of one trio nursery. The worker ends when the control socket's peer is gone, when the kernel ends the
connection, or when it is told to stop. It must not know credentials, registries or paths.
"""

from __future__ import annotations

import gc
import signal
import socket
import time
from typing import Final

import msgspec
import structlog
import trio

from fuse import spec, wire
from fuse.artifact.chunks import CHUNK_BYTES
from fuse.errors import Fault
from fuse.filesystem.table import Table
from fuse.filesystem.tree import Tree
from fuse.prefetch import order
from fuse.prefetch.touches import Touches
from fuse.worker.hinting import Hinting
from fuse.worker.learning import Learning
from fuse.worker.operations import TreeOperations
from fuse.worker.reader import Reader
from fuse.worker.session import Session
from fuse.worker.session_client import FetchSession

DRAIN_S: Final = 2.0
"""How long a stop waits for reads that wait: what is unanswered then goes to a successor."""

_log = structlog.get_logger()


class Worker:
    """Owns the sockets it is given. `control` is not read before `run`."""

    def __init__(
        self, start: spec.Start, table: Table, *, control: socket.socket, device: int, session: socket.socket
    ) -> None:
        self._control = control
        self._first_session = session
        self._tree = Tree(table, start.spec.uid, start.spec.gid)
        self._fetch = FetchSession(
            len(table.blobs),
            withheld=_withheld(table) if start.spec.verify == "strict" else frozenset(),
            background=lambda learned: order.ranges(table, learned, self._hinting.named),
            on_condition=self._condition_changed,
            on_quarantine=self._quarantined,
        )
        touches = Touches(table)
        self._learning = Learning(touches, self._fetch.tell_learned)
        self._reader = Reader(self._tree, self._fetch, touches=touches, on_open=self._learning.opened)
        self._hinting = Hinting(self._tree, self._reader, self._fetch)
        self._operations = TreeOperations(self._tree, self._reader)
        self._set_prefetch(start.spec.prefetch)
        self._session = Session(self._operations, self._reader, device, start.init, start.reply, resend=start.resend)
        self._decoder: msgspec.json.Decoder[spec.ToWorker] = msgspec.json.Decoder(spec.ToWorker)

    async def run(self) -> None:
        """Serves until the end. Raises MountFailed when the session cannot be begun."""
        self._sending = trio.Lock()
        self._stop = trio.Event()
        self._news = trio.Event()
        self._condition = spec.Condition()
        with trio.socket.from_stdlib_socket(self._control) as control:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._fetch_always, control, self._first_session)
                nursery.start_soon(self._learning.run)
                nursery.start_soon(self._hinting.run)
                async with self._session.serving():
                    await self._send(control, spec.Started(reply=self._session.reply))
                    nursery.start_soon(self._listen, control)
                    nursery.start_soon(self._tell_condition, control)
                    nursery.start_soon(self._wait_signal)
                    # What exists now lives as long as the process; later collections need not walk it.
                    gc.collect()
                    gc.freeze()
                    await self._stop.wait()
                    await self._session.drain(DRAIN_S)
                nursery.cancel_scope.cancel()
        self._fetch.close()

    def _set_prefetch(self, prefetch: spec.Prefetch) -> None:
        self._fetch.set_prefetch(prefetch == "full")
        self._reader.set_prefetch(prefetch == "full")
        if prefetch == "full":
            self._hinting.wanted.set()

    # ---- the fetcher ----

    async def _fetch_always(
        self,
        control: trio.socket.SocketType,
        first: socket.socket,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._sockets, sockets = trio.open_memory_channel[socket.socket](1)
        self._sockets.send_nowait(first)
        task_status.started()
        number = 0
        async for sock in sockets:
            number += 1
            with trio.CancelScope() as self._current_session:
                await self._fetch.run(sock, last_words=self._learning.untold)
                await self._send(control, spec.SessionLost(session=number))

    async def _replace_session(self, fds: list[int]) -> None:
        sock = socket.socket(fileno=fds.pop(0))
        # The old one is of no use, even if its end has not been seen yet.
        self._current_session.cancel()
        await self._sockets.send(sock)

    # ---- the privileged side ----

    async def _listen(self, control: trio.socket.SocketType) -> None:
        space = socket.CMSG_SPACE(4 * wire.MAX_FDS)
        while True:
            try:
                packet, ancillary, _, _ = await control.recvmsg(wire.MAX_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                packet, ancillary = b"", []
            if not packet:
                _log.info("holder_gone")
                self._nursery.cancel_scope.cancel()
                return
            fds = wire.fds_of(ancillary)
            try:
                await self._obey(self._decoder.decode(packet), fds, control)
            except msgspec.DecodeError as error:
                _log.error("control_message_unknown", error=error)
            finally:
                wire.close_all(fds)

    async def _obey(self, message: spec.ToWorker, fds: list[int], control: trio.socket.SocketType) -> None:
        match message:
            case spec.Ask(id=number):
                counters = self._reader.counters
                report = spec.Report(
                    id=number,
                    reads=counters.reads,
                    bytes_read=counters.bytes_read,
                    waiting=counters.waiting,
                    waited_s=counters.waited_s,
                    open_files=self._operations.open_files,
                    at_once=counters.at_once,
                )
                await self._send(control, report)
            case spec.NewSession() if fds:
                await self._replace_session(fds)
            case spec.SetPrefetch(prefetch=prefetch):
                self._set_prefetch(prefetch)
            case spec.Stop():
                self._stop.set()
            case _:
                _log.error("control_message_unexpected", message=type(message).__name__)

    async def _send(self, control: trio.socket.SocketType, message: msgspec.Struct) -> None:
        async with self._sending:
            try:
                await control.send(wire.encode(message))
            except (BrokenPipeError, ConnectionResetError):
                # `_listen` sees the end too, and ends the worker.
                return

    async def _wait_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._stop.set()

    # ---- what went wrong ----

    def _condition_changed(self, fault: Fault | None, permanent: bool) -> None:
        self._condition = spec.Condition(fault=fault, since=time.time(), permanent=permanent)
        self._news.set()

    async def _tell_condition(self, control: trio.socket.SocketType) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            await self._send(control, self._condition)

    def _quarantined(self, blob: int) -> None:
        self._nursery.start_soon(self._invalidate, blob)

    async def _invalidate(self, blob: int) -> None:
        """Makes the kernel forget the pages of the blob's files; in a thread, since it waits for reads that are on their way."""
        await trio.to_thread.run_sync(self._invalidate_files, blob)

    def _invalidate_files(self, blob: int) -> None:
        self._fetch.blobs[blob].wait_settled()
        for ino in self._tree.files():
            if self._tree.extent(ino).blob == blob:
                self._session.invalidate(ino)


def _withheld(table: Table) -> frozenset[int]:
    """The blobs that `verify: strict` holds back. Small ones are compared with their digest before any of them is there."""
    return frozenset(number for number, blob in enumerate(table.blobs) if blob.size > CHUNK_BYTES)
