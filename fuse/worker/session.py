"""The FUSE session: how pyfuse3 comes to serve a connection that another process opened, and a third may have served.

libfuse refuses every request until it has seen FUSE_INIT, and offers no way to resume. So pyfuse3 never sees the device: it
has one end of a SOCK_SEQPACKET pair in its place. The kept INIT goes in at the other end, the reply comes out there, gets what
libfuse does not offer, and goes to the device. It always does: a predecessor may have died before it did so. At a takeover
FUSE_NOTIFY_RESEND then brings back what the predecessor had read. From then on `fuse.worker.connection` carries requests between
the device and the pair, and answers READs itself.

Runs on trio's thread; READs that have to wait are tasks here. One session a process (pyfuse3 keeps it in globals). Must not know
blocks or the fetcher.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import pyfuse3
import structlog
import trio

from fuse import wire
from fuse.errors import MountFailed, WeightlessError
from fuse.worker import handshake
from fuse.worker.connection import Connection, ReadServer
from fuse.worker.errnos import errno_of
from fuse.worker.requests import Read

MAX_TASKS: Final = 64
"""Of pyfuse3, for requests other than READ, which never wait for anything. They are made on demand and end when idle."""
RESENT_S: Final = 0.1
"""For answers that are just being written, where everything else will be sent again."""
_KILL_CHECK_S: Final = 0.5
"""How often a waiting READ whose reader got a signal is looked at again: was it SIGKILL?"""
_MOST_EARLY: Final = 256
_SIGKILL: Final = 1 << (9 - 1)

_log = structlog.get_logger()


class Deliver(Protocol):
    """Takes the bytes of a READ, in parts that follow each other."""

    def __call__(self, *parts: bytes | bytearray | memoryview) -> None: ...


class Reads(Protocol):
    """Where the bytes of READs come from; `fuse.worker.reader.Reader` is one."""

    def server(self) -> ReadServer:
        """For one more thread. Thread-safe."""
        ...

    async def read_later(self, ino: int, offset: int, size: int, deliver: Deliver) -> None:
        """Waits for the bytes, and delivers them from some thread. Raises a WeightlessError when there will be none."""
        ...


class Session:
    """One connection, from the kept INIT to its end. `reply` is what a successor needs."""

    def __init__(
        self,
        operations: pyfuse3.Operations,
        reads: Reads,
        device: int,
        init: bytes,
        first_reply: bytes = b"",
        *,
        resend: bool = True,
    ) -> None:
        """`resend` false plays a kernel that cannot, for tests."""
        handshake.check(init)
        self._device = device
        self._init = init
        self._first_reply = first_reply
        self._reads = reads
        self._ours, theirs = wire.pair()
        pyfuse3.init(operations, f"/dev/fd/{theirs.detach()}", set())
        self._connection = Connection(
            device, self._ours, servers=reads.server, later=self._later, interrupted=self._interrupted
        )
        self._waiting: dict[int, tuple[Read, trio.CancelScope]] = {}
        self._early: deque[int] = deque(maxlen=_MOST_EARLY)
        """Interrupts of requests that do not wait: answered already, or about to wait."""
        self._idle = trio.Event()
        self._resend = resend
        self._resends = False
        self.reply = b""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves requests while the body runs; the body is cancelled when the connection ends."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(partial(pyfuse3.main, min_tasks=2, max_tasks=MAX_TASKS))
            await self._shake_hands()
            self._connection.start()
            nursery.start_soon(self._wait_gone, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def drain(self, limit_s: float) -> None:
        """Takes no new request, and answers the READs that wait for at most `limit_s`; call it in the body of `serving`.

        What comes meanwhile stays in the kernel for a successor. Where the kernel sends again what is not answered, that is not
        waited for: the successor serves it sooner.
        """
        await trio.to_thread.run_sync(self._connection.leave)
        with trio.move_on_after(min(limit_s, RESENT_S) if self._resends else limit_s):
            while self._waiting:
                self._idle = trio.Event()
                await self._idle.wait()
            while self._connection.passing:  # noqa: ASYNC110 - names and attributes: answered in a moment, by another thread
                await trio.sleep(0.001)

    def invalidate(self, ino: int) -> None:
        """Makes the kernel forget the pages of a file. Blocks; for a thread, since it waits for READs under way."""
        self._connection.invalidate(ino)

    # ---- the handshake ----

    async def _shake_hands(self) -> None:
        self._ours.send(handshake.masked(self._init, self._first_reply))
        await trio.lowlevel.wait_readable(self._ours)
        reply = handshake.patched(self._init, self._ours.recv(4096))
        self._write(reply)
        # Nothing to send again if we are the first; but then it tells whether this kernel can.
        self._resends = self._resend and self._write(handshake.RESEND)
        self.reply = self._first_reply or reply

    def _write(self, message: bytes) -> bool:
        """False when the kernel knows of no such request (a predecessor answered it), or of no RESEND."""
        try:
            os.write(self._device, message)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            if error.errno == errno.EINVAL and message == handshake.RESEND:
                _log.warning(
                    "takeover_incomplete", reason="this kernel is older than 6.9: readers of the last worker hang"
                )
                return False
            raise MountFailed(f"the FUSE connection does not take our answer: {error}") from error
        return True

    # ---- READs that wait ----

    def _later(self, read: Read) -> None:
        """On a thread of the connection."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._begin, read)

    def _begin(self, read: Read) -> None:
        scope = trio.CancelScope()
        # Known already where the kernel was asked twice to send again what is not answered. Both are answered: from when it has
        # queued the second it takes no answer to the first.
        self._waiting[read.unique] = (read, scope)
        self._nursery.start_soon(self._answer, read, scope)
        if read.unique in self._early:
            self._early.remove(read.unique)
            self._watch(read.unique)

    async def _answer(self, read: Read, scope: trio.CancelScope) -> None:
        failure = 0
        try:
            with scope:
                await self._reads.read_later(
                    read.ino, read.offset, read.size, partial(self._connection.answer, read.unique)
                )
            if scope.cancelled_caught:
                failure = errno.EINTR
        except WeightlessError as error:
            _log.error("read_failed", kind=error.kind, error=error)
            failure = errno_of(error)
        except Exception:  # noqa: BLE001  (a bug in one READ must not end the mount)
            _log.exception("request_crashed")
            failure = errno.EIO
        finally:
            if (read, scope) == self._waiting.get(read.unique):
                del self._waiting[read.unique]
            if not self._waiting:
                self._idle.set()
        if failure:
            self._connection.fail(read.unique, failure)

    # ---- readers that are killed ----

    def _interrupted(self, unique: int) -> None:
        """On a thread of the connection. Any signal interrupts, but a page fault that fails for one is a SIGBUS: only a reader
        that is being killed has no use for its bytes any more."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._watch, unique)

    def _watch(self, unique: int) -> None:
        if unique in self._waiting:
            self._nursery.start_soon(self._give_up_if_killed, *self._waiting[unique])
        else:
            # The READ may still be in the hands of another thread, which has to ask us for it.
            self._early.append(unique)

    async def _give_up_if_killed(self, read: Read, scope: trio.CancelScope) -> None:
        while read.unique in self._waiting:
            if _is_killed(read.pid):
                scope.cancel()
                return
            # The kernel sends one INTERRUPT a request: a SIGKILL that comes after another signal is seen here only.
            await trio.sleep(_KILL_CHECK_S)

    async def _wait_gone(self, scope: trio.CancelScope) -> None:
        # The device reports EPOLLERR once the kernel has ended the connection. An epoll of no events wakes for errors only.
        with select.epoll() as errors:
            errors.register(self._device, 0)
            await trio.lowlevel.wait_readable(errors.fileno())
        _log.info("connection_ended")
        scope.cancel()


def _is_killed(thread: int) -> bool:
    """Whether a SIGKILL waits for a thread (proc_pid_status(5)), which cannot die before its request is answered."""
    try:
        lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    except OSError:
        return False
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(signals & _SIGKILL for signals in pending)
