"""The FUSE session: how pyfuse3 comes to serve a connection that another process opened, and a third may have served.

libfuse refuses every request until it has seen FUSE_INIT, and offers no way to resume. So pyfuse3 first gets one end of a
SOCK_SEQPACKET pair in place of the device. The kept INIT goes in at the other end, the reply comes out there, and then, in
one step without an await, the device takes the pair's place under the same descriptor. The reply always goes to the device as
well: a predecessor may have died before it did so. At a takeover FUSE_NOTIFY_RESEND then brings back what the predecessor had
read.

One session a process (pyfuse3 keeps it in globals). Must not know files, blocks or the fetcher.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pyfuse3
import structlog
import trio

from fuse import wire
from fuse.errors import MountFailed
from fuse.worker import handshake

MAX_TASKS: Final = 4096
"""Requests that may wait at once. Each read of an absent block holds one; when all are taken, `ls` would wait as well. They are
made on demand and end when idle."""

_log = structlog.get_logger()


class Session:
    """One connection, from the kept INIT to its end. `reply` is what a successor needs."""

    def __init__(self, operations: pyfuse3.Operations, device: int, init: bytes, first_reply: bytes = b"") -> None:
        handshake.check(init)
        self._device = device
        self._init = init
        self._first_reply = first_reply
        self._ours, theirs = wire.pair()
        self._fd = theirs.detach()
        pyfuse3.init(operations, f"/dev/fd/{self._fd}", set())
        self._ended = trio.Event()
        self.reply = b""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves requests while the body runs; the body is cancelled when the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._main, nursery.cancel_scope)
            await self._take_device()
            nursery.start_soon(self._wait_gone, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def drain(self, limit_s: float) -> None:
        """Takes no new request, and answers those that it has for at most `limit_s`; call it in the body of `serving`.

        What is not answered then will be sent again to a successor.
        """
        pyfuse3.terminate()
        with trio.move_on_after(limit_s):
            await self._ended.wait()

    async def _main(self, scope: trio.CancelScope) -> None:
        while not await self._requests():
            # The tasks that were cancelled with the loop had read requests: back with those too.
            self._write(handshake.RESEND)
        self._ended.set()
        scope.cancel()

    async def _requests(self) -> bool:
        """Answers requests until the connection ends; False when the loop has to be begun again.

        A request can vanish between the moment it makes the device readable and the read (its process was killed). A blocking
        read would then stop everything until the next request, so the device does not block, and pyfuse3 takes EAGAIN for the
        end.
        """
        try:
            await pyfuse3.main(min_tasks=2, max_tasks=MAX_TASKS)
        except BaseExceptionGroup as group:
            _, others = group.split(BlockingIOError)
            if others is not None:
                raise
            _log.info("request_vanished")
            return False
        return True

    async def _take_device(self) -> None:
        with trio.socket.from_stdlib_socket(self._ours) as ours:
            await ours.send(handshake.masked(self._init, self._first_reply))
            reply = handshake.patched(self._init, await ours.recv(4096))
            # No await from here on: pyfuse3 must not touch the descriptor between the two calls.
            os.dup2(self._device, self._fd, inheritable=False)
            trio.lowlevel.notify_closing(self._fd)
            self._write(reply)
            # Nothing to send again if we are the first; but then it tells whether this kernel can.
            if self._write(handshake.RESEND):
                os.set_blocking(self._device, False)
            elif self._first_reply:
                _log.warning(
                    "takeover_incomplete", reason="kernel older than 6.9: readers that the last worker served hang"
                )
        self.reply = self._first_reply or reply

    def _write(self, message: bytes) -> bool:
        """False when the kernel knows of no such request: a predecessor answered it."""
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

    async def _wait_gone(self, scope: trio.CancelScope) -> None:
        # The device reports EPOLLERR once the kernel has ended the connection. pyfuse3 sees that too, but then waits for the
        # reads that wait for blocks, whose readers are gone. An epoll of no events wakes for errors only.
        with select.epoll() as errors:
            errors.register(self._device, 0)
            await trio.lowlevel.wait_readable(errors.fileno())
        _log.info("connection_ended")
        scope.cancel()
