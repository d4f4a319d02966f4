"""One worker's session: its requests to the engine, the engine's answers to it.

A thread receives. Answers are sent at once by the thread that has them, without blocking; what does not fit into the socket
waits for a second thread, which is started only then: a slow worker slows nobody else. A worker is not trusted: it may ask for
the blobs of its mount's table by number, and is hung up on when it sends anything else, or takes nothing while it asks on.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import termios
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from fuse import threads, wire
from fuse.artifact.profile import Runs
from fuse.errors import Unavailable
from fuse.fetch import protocol
from fuse.fetch.engine import PRIORITIES, Engine
from fuse.fetch.mounts import Mount

_MOST_WAITING: Final = 16384
_MOST_LOANS: Final = 16
"""Blocks in memory that a worker has been sent and has not taken; its reads ask for a few at a time."""
_OPENINGS: Final = 2
"""Of every blob of a mount, so many answers may wait with the files that were asked for."""
_FDS_A_BLOB: Final = 2
_COME_BACK_S: Final = 0.02
_FULL: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS))

_log = structlog.get_logger(__name__)


class Profile(Protocol):
    """In which order the mount's artifact is read; `fuse.fetch.profiles.MountProfile` is one. Thread-safe."""

    def order(self) -> Runs:
        """What is known, in the mount's numbers; empty if nothing is."""
        ...

    def learned(self, runs: Runs) -> None:
        """What its worker says of a load. Never raises."""
        ...


class Session:
    """Serves one session socket until its peer is gone or `close` is called."""

    def __init__(self, engine: Engine, mount: Mount, sock: socket.socket, profile: Profile | None = None) -> None:
        """`profile`: None for what is no artifact, and for a worker that knows nothing of profiles."""
        self._engine = engine
        self._mount = mount
        self._profile = profile
        sock.settimeout(None)
        self._channel: wire.Channel[protocol.FromWorker] = wire.Channel(sock, protocol.FromWorker)
        self._state = threading.Condition(threading.Lock())
        self._waiting: deque[tuple[protocol.ToWorker, tuple[int, ...]]] = deque()
        self._waiting_fds = 0
        self._most_fds = _MOST_LOANS + _OPENINGS * _FDS_A_BLOB * len(mount.blobs)
        self._loans = 0
        """Sent since the worker was known to have taken everything."""
        self._coming_back = False
        self._writer_busy = False
        self._writer: threading.Thread | None = None
        self._closed = False
        self._port = engine.open_port(mount, self)
        self._reader = threading.Thread(target=self._read, name=f"session-{mount.name}", daemon=True)

    def start(self) -> None:
        """Raises Unavailable, and has hung up then."""
        self.tell_order()
        if not threads.begin(self._reader):
            self._end()
            raise Unavailable(
                "no thread can be started to serve the mount", fix="raise the node's limit of processes, or try again"
            )

    def tell_order(self) -> None:
        """The order of the mount's artifact may be another one now."""
        if self._profile is not None:
            self.send(protocol.Order(runs=self._profile.order()))

    def close(self) -> None:
        """Hangs up; the threads end by themselves."""
        self._channel.hang_up()

    def join(self, limit_s: float | None = None) -> None:
        """Waits until what the worker had said before it went is done."""
        if self._reader.ident is not None:
            self._reader.join(limit_s)

    # ---- answers ----

    def takes_loan(self) -> bool:
        with self._state:
            if self._loans and not self._waiting and not self._writer_busy and self._all_taken():
                self._loans = 0
            return self._closed or self._loans < _MOST_LOANS

    def come_back(self) -> None:
        with self._state:
            self._coming_back = True
            self._wake_writer()

    def _all_taken(self) -> bool:
        """Whether the worker has received every packet."""
        try:
            return fcntl.ioctl(self._channel.sock, termios.TIOCOUTQ, b"\0" * 4) == b"\0" * 4
        except (OSError, ValueError):
            return True

    def _wake_writer(self) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write, name=f"answers-{self._mount.name}", daemon=True)
            if not threads.begin(writer):
                self._channel.hang_up()  # the worker asks for everything again
                return
            self._writer = writer
        self._state.notify()

    def send(self, message: protocol.ToWorker, fds: Sequence[int] = ()) -> None:
        with self._state:
            if self._closed:
                wire.close_all(fds)
                return
            self._loans += isinstance(message, protocol.Loan)
            if not self._waiting and not self._writer_busy and self._send_nowait(message, fds):
                wire.close_all(fds)
                return
            self._append(message, tuple(fds))
            self._wake_writer()

    def _append(self, message: protocol.ToWorker, fds: tuple[int, ...]) -> None:
        last = self._waiting[-1][0] if self._waiting else None
        if (
            isinstance(message, protocol.Ready)
            and isinstance(last, protocol.Ready)
            and last.blob == message.blob
            and last.first + last.count == message.first
        ):
            both = protocol.Ready(blob=last.blob, first=last.first, count=last.count + message.count)
            self._waiting[-1] = (both, ())
            return
        self._waiting.append((message, fds))
        self._waiting_fds += len(fds)
        if len(self._waiting) > _MOST_WAITING or self._waiting_fds > self._most_fds:
            _log.warning("session_overrun", mount=self._mount.name)
            self._channel.hang_up()

    def _send_nowait(self, message: protocol.ToWorker, fds: Sequence[int]) -> bool:
        """False when the message has to wait. A peer that is gone takes everything."""
        try:
            self._channel.sock.sendmsg([wire.encode(message)], wire.rights(fds), socket.MSG_DONTWAIT)
        except OSError as error:
            return error.errno not in _FULL
        return True

    def _write(self) -> None:
        message: protocol.ToWorker | None
        fds: tuple[int, ...] = ()
        while True:
            drained = False
            with self._state:
                self._writer_busy = False
                self._state.wait_for(lambda: self._waiting or self._closed or self._coming_back)
                if self._closed:
                    return
                if not self._waiting:
                    # The worker tells nobody that it has taken a packet, so it is looked at.
                    self._state.wait_for(lambda: self._closed or self._waiting, _COME_BACK_S)
                    drained = not self._closed and not self._waiting and self._all_taken()
                    self._coming_back = not drained
                    message = None
                else:
                    message, fds = self._waiting.popleft()
                    self._waiting_fds -= len(fds)
                    self._writer_busy = True
            if message is None:
                if drained:
                    self._resume()
                continue
            try:
                self._send_patiently(message, fds)
            except OSError:
                self._channel.hang_up()
            finally:
                wire.close_all(fds)

    def _resume(self) -> None:
        try:
            self._engine.loans.resume(self._port)
        except ValueError as error:
            _log.warning("session_refused", mount=self._mount.name, error=str(error))
            self._channel.hang_up()

    def _send_patiently(self, message: protocol.ToWorker, fds: Sequence[int]) -> None:
        while True:
            try:
                self._channel.send(message, fds)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                time.sleep(0.01)  # too many descriptors in flight: the worker has to take some first
            else:
                return

    # ---- requests ----

    def _read(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                message, fds = received
                wire.close_all(fds)
                self._serve(message)
        except (ValueError, IndexError) as error:
            _log.warning("session_refused", mount=self._mount.name, error=str(error))
        except Exception:  # noqa: BLE001  (the edge of a thread)
            _log.exception("session_broken", mount=self._mount.name)
        finally:
            self._end()

    def _serve(self, message: protocol.FromWorker) -> None:
        if isinstance(message, protocol.Learned):
            if self._profile is not None:
                self._profile.learned(message.runs)
            return
        if not 0 <= message.blob < len(self._mount.blobs):
            raise IndexError(f"the mount has no blob {message.blob}")
        match message:
            case protocol.Want():
                if message.whole:
                    self._engine.want_whole(self._port, message.blob)
                else:
                    priority = PRIORITIES[message.priority]
                    if message.anew:
                        self._engine.forget_wishes(self._port, priority)
                    self._engine.want(
                        self._port, message.blob, message.first, message.count, priority, front=message.front
                    )
            case protocol.Open():
                self._engine.open(self._port, message.blob, live=message.live)
            case protocol.Damaged():
                self._engine.damaged(self._port, message.blob, message.first, message.count)

    def _end(self) -> None:
        self._engine.close_port(self._port)
        self._channel.hang_up()  # ends a writer that is blocked in sending
        with self._state:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            self._state.notify_all()
            writer = self._writer
        for _, fds in waiting:
            wire.close_all(fds)
        if writer is not None:
            writer.join()
        self._channel.close()
