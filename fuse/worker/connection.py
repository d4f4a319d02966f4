"""The kernel's device: threads that take requests off it, answer READs themselves and pass everything else to libfuse.

Why past libfuse: pyfuse3 answers on its loop's thread with the interpreter lock held, so one READ at a time is copied into the
kernel, and copying into pages that nobody has touched yet is what a cold read costs most. A thread here takes one READ with
one system call, fills its own buffer with a second, and answers with a third; all three let the lock go, so several READs are
copied at once. What a thread cannot answer at once (absent blocks, a slow disk) it hands on, and takes the next request.

libfuse has one end of a SOCK_SEQPACKET pair in place of the device; the other end is here. Its answers are written to the
device by one more thread. libfuse writes with the interpreter lock held: if the socket were full, nobody could empty it. So no
more requests are passed on than the answers of which have room (`_MOST_PASSED` of `MAX_LISTING_BYTES`); the rest waits here.

Threads sit in read(2) until the kernel ends the connection. `leave` gets them out of there with a signal, so that none takes a
request that it would not answer: a kernel before 6.9 never sends it again.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from fuse.worker import requests
from fuse.worker.handshake import MAX_IO_BYTES
from fuse.worker.requests import Read

THREADS: Final = max(2, min(4, os.cpu_count() or 1))
"""More only wait for the interpreter lock."""
_MOST_PASSED: Final = 4
_REQUEST_BYTES: Final = MAX_IO_BYTES + 4096
"""The kernel refuses a buffer that is smaller than the largest WRITE that was negotiated; only what is read is ever touched."""
_REPLY_BYTES: Final = 256 * 1024
_OVER: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
_VANISHED: Final = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""What the kernel says when the process behind a request was killed before the request was read, or answered."""
_NUDGE: Final = signal.SIGUSR1
_NUDGE_S: Final = 0.02

_log = structlog.get_logger()


class ReadServer(Protocol):
    """Answers READs for one thread, out of a buffer of its own."""

    def read(self, ino: int, offset: int, size: int) -> memoryview | None:
        """The bytes, valid until the next call; None when that would have to wait. Must not raise."""
        ...

    def done(self) -> None:
        """The bytes of the last call were delivered."""
        ...


class Connection:
    """One device and its threads. `later` is told of READs that have to wait, and `interrupted` of requests (by `unique`)
    whose readers got a signal; both are called on these threads and must not block.
    """

    def __init__(
        self,
        device: int,
        peer: socket.socket,
        *,
        servers: Callable[[], ReadServer],
        later: Callable[[Read], None],
        interrupted: Callable[[int], None],
    ) -> None:
        self._device = device
        self._peer = peer
        self._servers = servers
        self._later = later
        self._interrupted = interrupted
        self._passing = threading.Lock()
        self._passed = 0
        self._waiting: deque[bytes] = deque()
        self._leaving = False
        self._left = threading.Event()
        self._threads: list[tuple[threading.Thread, threading.Event]] = []

    def start(self) -> None:
        """From now on requests are taken. The INIT reply must have been written. On the process's main thread."""
        signal.signal(_NUDGE, lambda *_: None)
        # The descriptor's file is shared with predecessors, who leave it otherwise.
        os.set_blocking(self._device, True)
        self._peer.setblocking(True)
        threading.Thread(target=self._pump, name="answers", daemon=True).start()
        for number in range(THREADS):
            out = threading.Event()
            thread = threading.Thread(target=self._take_until_out, args=(out,), name=f"requests-{number}", daemon=True)
            self._threads.append((thread, out))
            thread.start()

    def leave(self) -> None:
        """Takes no more requests, and returns when those that threads had in hand are answered or handed on."""
        self._leaving = True
        for thread, out in self._threads:
            # One that was just about to read when the signal came takes nothing, or one more request: then it comes out as well.
            while not out.is_set():
                os.set_blocking(self._device, False)
                signal.pthread_kill(thread.ident or 0, _NUDGE)
                out.wait(_NUDGE_S)
        self._left.set()

    @property
    def passing(self) -> int:
        """How many requests libfuse has not answered yet."""
        return self._passed

    # ---- answers, from any thread ----

    def answer(self, unique: int, *parts: bytes | bytearray | memoryview) -> None:
        """Answers a request; one that the kernel no longer wants is no error."""
        self._write([requests.answer(unique, sum(map(len, parts))), *parts])

    def fail(self, unique: int, number: int) -> None:
        self._write([requests.failure(unique, number)])

    def invalidate(self, ino: int) -> None:
        """Makes the kernel forget the pages of a file. Blocks until READs of it that are under way are answered."""
        self._write([requests.invalidation(ino)])

    def _write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            if error.errno not in _VANISHED and error.errno not in _OVER:
                _log.warning("answer_refused", error=error.strerror)

    # ---- requests ----

    def _take_until_out(self, out: threading.Event) -> None:
        try:
            self._take()
        finally:
            out.set()
            if self._leaving:
                self._left.wait()  # nobody may signal a thread that has ended

    def _take(self) -> None:
        buffer = memoryview(bytearray(_REQUEST_BYTES))
        into = [buffer]
        server = self._servers()
        device = self._device
        while True:
            try:
                length = os.readv(device, into)
            except OSError as error:
                if error.errno in _VANISHED and not self._leaving:
                    if error.errno == errno.EAGAIN:
                        os.set_blocking(device, True)  # a predecessor left only after `start`
                    continue
                if error.errno not in _VANISHED | _OVER:
                    _log.error("device_failed", error=error.strerror)
                return
            if not length:
                return
            try:
                self._serve(server, buffer[:length])
            except Exception:  # noqa: BLE001  (the edge of a thread: the others and the mount live on)
                _log.exception("request_crashed")
                self.fail(requests.opcode(buffer)[1], errno.EIO)
            if self._leaving:
                return

    def _serve(self, server: ReadServer, request: memoryview) -> None:
        code, unique = requests.opcode(request)
        if code == requests.READ:
            read = requests.parse_read(unique, request)
            content = server.read(read.ino, read.offset, read.size)
            if content is None:
                self._later(read)
                return
            try:
                self.answer(unique, content)
            finally:
                server.done()
        elif code == requests.INTERRUPT:
            # No answer: EAGAIN would bring it back at once, and for ever if it is about what a dead predecessor had taken.
            self._interrupted(requests.interrupted(request))
        elif code not in requests.UNANSWERED:
            if code in requests.LISTINGS:
                requests.limit_listing(request)
            self._pass(request)

    def _pass(self, request: memoryview) -> None:
        with self._passing:
            if self._passed >= _MOST_PASSED:
                self._waiting.append(bytes(request))
                return
            self._passed += 1
        self._send(request)

    def _send(self, request: memoryview | bytes) -> None:
        try:
            self._peer.send(request)
        except OSError:
            return  # libfuse is gone, and this process with it

    def _pump(self) -> None:
        """libfuse's answers, in the order in which they come."""
        buffer = memoryview(bytearray(_REPLY_BYTES))
        while True:
            try:
                length = self._peer.recv_into(buffer)
            except OSError:
                return
            if not length:
                return
            self._write([buffer[:length]])
            with self._passing:
                following = self._waiting.popleft() if self._waiting else None
                if following is None:
                    self._passed -= 1
            if following is not None:
                self._send(following)
