"""One worker process as its holder sees it: started with a mount's descriptors, listened to, asked, stopped.

Its messages and its end are noticed by the holder's `Watch` thread; every other method may be called from any thread. A worker
that is gone stays gone: the mount's next worker is another object.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from fuse import spec, wire
from fuse.errors import MountFailed, WeightlessError, from_fault
from fuse.mounting import process, watch

PROGRAM: Final = ("-P", "-m", "fuse.worker")
"""-P: the directory that somebody started us in is no place to import from."""
_SEND_LIMIT_S: Final = 5.0
_STOP_GRACE_S: Final = 6.0
_TAIL_BYTES: Final = 4000

_log = structlog.get_logger()


class Worker:
    """A started process; it serves once `wait_started` has returned."""

    def __init__(
        self,
        watcher: watch.Watch,
        *,
        log_level: str,
        on_end: Callable[[Worker], None],
        on_session_lost: Callable[[Worker, int], None] = lambda _worker, _session: None,
    ) -> None:
        """Both are called on the watch thread."""
        self._watch = watcher
        self._callbacks = threading.Lock()
        """Held while they are exchanged, and while the end is noticed: whose worker it is then is told."""
        self._on_end = on_end
        self._on_session_lost = on_session_lost
        ours, theirs = wire.pair()
        ours.settimeout(_SEND_LIMIT_S)
        self._control: wire.Channel[spec.FromWorker] = wire.Channel(ours, spec.FromWorker)
        self._stderr, stderr = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._stderr, False)
        self._tail = b""
        self._settled = threading.Event()
        self._reply: bytes | None = None
        self._trouble: WeightlessError | None = None
        self._ids = itertools.count(1)
        self._asked: int | None = None
        self._stopping = False
        self._reported = threading.Event()
        self.sessions = 1
        """How many sessions with the fetcher it was given."""
        self.report: spec.Report | None = None
        """What it said last."""
        self.condition: spec.Condition | None = None
        try:
            with theirs:
                argv = [sys.executable, *PROGRAM, str(theirs.fileno())]
                self._child = process.spawn(argv, pass_fds=(theirs.fileno(),), stderr=stderr, log_level=log_level)
        except BaseException:
            self._control.close()
            os.close(self._stderr)
            raise
        finally:
            os.close(stderr)
        self.pid = self._child.pid
        self._control_fd = self._control.fileno()
        self._open = True
        self._given_up = ""
        self._closed = threading.Event()
        watcher.add(self._stderr, watch.READABLE, self._read_stderr)
        watcher.add(self._control_fd, watch.READABLE, self._read_control)

    @property
    def alive(self) -> bool:
        """False once its end was noticed, or it was given up."""
        return self._open and not self._given_up

    @property
    def silent(self) -> bool:
        """Whether a question is unanswered."""
        return self._asked is not None

    @property
    def starting(self) -> bool:
        """Whether it has neither served nor failed yet."""
        return not self._settled.is_set()

    def assign(self, on_end: Callable[[Worker], None], on_session_lost: Callable[[Worker, int], None]) -> bool:
        """Who is told from now on. False when it has ended: then nobody else is."""
        with self._callbacks:
            if not self.alive:
                return False
            self._on_end, self._on_session_lost = on_end, on_session_lost
            return True

    def start(self, message: spec.Start, fds: Sequence[int]) -> None:
        """Hands over what to serve: device, fetch session, table. `wait_started` tells how it went."""
        with suppress(MountFailed):
            self._send(message, fds)

    def wait_started(self, limit_s: float) -> bytes:
        """The reply that it gave to the kernel's INIT. Raises what the worker said of its failure, or MountFailed."""
        if not self._settled.wait(limit_s):
            raise MountFailed(f"the worker does not serve after {limit_s:.0f} s{self._said()}")
        if self._reply is not None:
            return self._reply
        if self._trouble is not None:
            raise self._trouble
        self._child.wait(1.0)
        raise MountFailed(f"the worker {self._child.fate} before it served{self._said()}")

    def new_session(self, session: int) -> None:
        self.sessions += 1
        self._send(spec.NewSession(), (session,))

    def set_prefetch(self, prefetch: spec.Prefetch) -> None:
        self._send(spec.SetPrefetch(prefetch=prefetch))

    def ask(self) -> None:
        """Asks for a report; `wait_report` waits for it. One question at a time: a worker that hangs is not flooded."""
        if self._asked is None and self._open:
            self._asked = next(self._ids)
            self._reported.clear()
            with suppress(MountFailed):
                self._send(spec.Ask(id=self._asked))

    def wait_report(self, deadline: float) -> spec.Report | None:
        """The newest report, after waiting until `deadline` (monotonic) for the one that was asked for."""
        if self._open and self._asked is not None:
            self._reported.wait(max(0.0, deadline - time.monotonic()))
        return self.report

    def pidfd(self) -> int | None:
        """A descriptor of its process, which the caller owns; None when it is gone."""
        try:
            return self._child.pidfd()
        except OSError:
            return None

    def kill(self) -> None:
        self._child.kill()

    def give_up(self, reason: str) -> None:
        """Kills it, and counts it as dead from now on: what hangs in its disk does not die of a signal."""
        self._given_up = reason
        self._child.kill()

    def stop(self) -> None:
        """Asks it to answer what it is answering, and to end. `end` waits for that."""
        if self._open and not self._stopping:
            self._stopping = True
            with suppress(MountFailed):
                self._send(spec.Stop())

    def end(self, *, drain: bool) -> None:
        """Returns when the process is gone: asked to with `drain`, else at once.

        One that not even SIGKILL ends (its disk hangs) is left alone after a while: a successor serves beside it.
        """
        if drain:
            self.stop()
        else:
            self._control.hang_up()
        if not self._child.wait(_STOP_GRACE_S):
            _log.warning("worker_killed", pid=self.pid, reason="it did not stop")
            self._child.kill()
            if not self._child.wait(_STOP_GRACE_S):
                _log.error("worker_unkillable", pid=self.pid, fix="see what its disk is doing")
                self._control.hang_up()
                self._child.reap_later()
        self._closed.wait(_STOP_GRACE_S)

    @property
    def fate(self) -> str:
        """Why it ended, in words."""
        return self._given_up or self._child.fate

    @property
    def last_words(self) -> str:
        """The last lines of its standard error."""
        return self._tail.decode(errors="replace").strip()

    def _send(self, message: spec.ToWorker, fds: Sequence[int] = ()) -> None:
        try:
            self._control.send(message, fds)
        except OSError as error:
            raise MountFailed(f"the worker is gone: {error.strerror or error}{self._said()}") from None

    def _said(self) -> str:
        return f"; its last words: {self.last_words}" if self.last_words else ""

    # ---- on the watch thread ----

    def _read_control(self) -> None:
        if not watch.ready(self._control_fd):
            return
        try:
            received = self._control.receive()
        except (OSError, ValueError) as error:
            _log.warning("worker_not_understood", pid=self.pid, error=str(error)[:500])
            received = None
        if received is None:
            self._close()
            return
        message, fds = received
        wire.close_all(fds)
        match message:
            case spec.Started():
                self._reply = message.reply
                self._settled.set()
            case spec.Broken():
                self._trouble = from_fault(message.fault)
                self._settled.set()
            case spec.SessionLost(session=session):
                self._on_session_lost(self, session)
            case spec.Report():
                self.report = message
                self._asked = None
                self._reported.set()
            case spec.Condition():
                self.condition = message

    def _read_stderr(self) -> None:
        try:
            said = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        if said:
            self._tail = (self._tail + said)[-_TAIL_BYTES:]
            with suppress(OSError):
                os.write(2, said)
            return
        self._watch.remove(self._stderr)
        os.close(self._stderr)
        self._stderr = -1

    def _close(self) -> None:
        # What it wrote just before its end is the reason that a person wants to read.
        while self._stderr >= 0 and watch.ready(self._stderr):
            self._read_stderr()
        if self._stderr >= 0:
            self._watch.remove(self._stderr)
            os.close(self._stderr)
            self._stderr = -1
        self._watch.remove(self._control_fd)
        self._control.close()
        with self._callbacks:
            self._open = False
            tell = self._on_end
        self._settled.set()
        self._reported.set()
        self._closed.set()
        tell(self)
