"""Child processes of a holder: how they are started, and how one waits for their end.

Children hold none of the caller's streams, none of its descriptors but those given, sit in a session of their own (the
terminal's signals do not reach them) and in `/`, and see of the environment only what they need. Thread-safe.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from fuse import threads

_END_BYTES: Final = 4000
_PASSED: Final = (
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
_PASSED_PREFIXES: Final = ("PYTHON", "LC_", "WEIGHTLESS_")
_TRACES: Final = "OTEL_"
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Child:
    """A process that this one started and has to wait for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._lock = threading.Lock()

    def pidfd(self) -> int:
        """A descriptor of the process, which the caller owns. Raises ProcessLookupError once it was reaped."""
        with self._lock:
            if self._process.returncode is not None:
                raise ProcessLookupError(f"process {self.pid} has ended")
            return os.pidfd_open(self.pid)

    def wait(self, limit_s: float | None = None) -> bool:
        """Waits for the end, by pidfd; whether it came within the limit. The process is reaped then."""
        with self._lock:
            if self._process.returncode is not None:
                return True
            pidfd = os.pidfd_open(self.pid)
        try:
            if not wait_for_pidfd(pidfd, limit_s):
                return False
        finally:
            os.close(pidfd)
        with self._lock:
            self._process.wait()
        return True

    def end(self, *, within_s: float) -> None:
        """Waits, then kills, and returns when it is gone."""
        if not self.wait(within_s):
            self.kill()
            self.wait()

    def kill(self) -> None:
        with self._lock, suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def reap_later(self) -> None:
        """Leaves a process that may outlive its starter to a thread that reaps it whenever it ends."""
        threads.begin(threading.Thread(target=self.wait, name=f"reap-{self.pid}", daemon=True))

    @property
    def fate(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "still runs"
        return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"


class Tee:
    """A pipe for a child's standard error: what comes is passed on to ours, and its end is remembered. Making one raises OSError.

    A child that outlives this process finds the pipe broken, which our logs take no notice of.
    """

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        self._end = b""
        if not threads.begin(threading.Thread(target=self._pass_on, name="stderr", daemon=True)):
            os.close(self._reading)
            os.close(self.writing)
            raise BlockingIOError(errno.EAGAIN, "no thread can be started")

    def last_words(self) -> str:
        return self._end.decode(errors="replace").strip()

    def _pass_on(self) -> None:
        with open(self._reading, "rb", buffering=0) as reading:
            while said := reading.read(65536):
                self._end = (self._end + said)[-_END_BYTES:]
                with suppress(OSError):
                    os.write(2, said)


def spawn(
    argv: Sequence[str], *, pass_fds: Sequence[int] = (), stderr: int, log_level: str = "info", proxies: bool = False
) -> Child:
    """Starts a program. `stderr` is a descriptor, which stays the caller's; `proxies` passes the proxy variables on."""
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        close_fds=True,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
        cwd="/",
        env={**environment(proxies=proxies), "WEIGHTLESS_LOG_LEVEL": log_level},
    )
    return Child(process)


def environment(*, proxies: bool) -> dict[str, str]:
    """What a child sees of this process's environment; a user's shell may hold secrets that are no business of it.

    `proxies`: it speaks with a network, and so sees the proxies', and those by which an administrator asks for traces.
    """
    names = _PASSED + (_PROXIES if proxies else ())
    return {
        name: value
        for name, value in os.environ.items()
        if name in names
        or name.startswith(_PASSED_PREFIXES)
        or (proxies and (name.upper() in _PROXIES or name.startswith(_TRACES)))
    }


def wait_for_pid(pid: int, limit_s: float) -> bool:
    """Waits for the end of a process that need not be a child; whether it came within the limit."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return wait_for_pidfd(pidfd, limit_s)
    finally:
        os.close(pidfd)


def kill_left(pidfd: int) -> bool:
    """Kills a process that nobody started here; whether it lived. What is no process of ours to kill is left alone."""
    if wait_for_pidfd(pidfd, 0):
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:  # it has just ended, or lives in a namespace that cannot be seen from here, and ends with that
        return False
    return True


def wait_for_pidfd(pidfd: int, limit_s: float | None) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if limit_s is None else max(0, int(limit_s * 1000))))
