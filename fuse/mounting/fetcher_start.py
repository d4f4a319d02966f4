"""How a fetcher is found or started: with the lock of its cache directory, so that there is one, whoever wants it first.

It says on an inherited pipe why it cannot start (`fuse.fetch.__main__`), so that a full disk is a full disk for whoever asked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fuse.disk import unusable
from fuse.errors import Fault, Unavailable, WeightlessError, from_fault
from fuse.fetch import protocol
from fuse.fetch.limits import RegistryLimits
from fuse.mounting import process, rundir
from fuse.mounting.fetcher_connection import Connection

PROGRAM: Final = ("-P", "-m", "fuse.fetch")
UNPRIVILEGED_ID: Final = 65534
WORKER_ID: Final = 65533
"""What workers become. Not the fetcher's: the owner of a file can write it, whatever its mode, by a descriptor that only reads,
and may send signals to the fetcher."""
_START_LIMIT_S: Final = 30.0
_POLL_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 2000
_MAX_SAID: Final = 300
_MAX_REPORT_BYTES: Final = 64 * 1024
_CHOICE: Final = "--cache-dir, or cache-dir in weightless.toml"
_SEE_LOG: Final = "try again; with --log-level debug the log says more. If it stays so, report it"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetcherSettings:
    """What a fetcher is started with; one that runs already keeps its own."""

    cache_dir: Path
    run_dir: Path
    """Where its log goes, unless `log_to_stderr`."""
    uid: int | None = None
    """What it becomes when started by root; None means nobody (65534)."""
    gid: int | None = None
    quota_bytes: int | None = None
    free_space_fraction: float | None = None
    connections: int | None = None
    bytes_per_s: int = 0
    registries: Mapping[str, RegistryLimits] = field(default_factory=dict)
    log_level: str = "info"
    log_to_stderr: bool = False
    """Share this process's standard error: for a node plugin, whose container collects it."""

    def argument(self) -> str:
        """The value of `--settings`."""
        root = os.geteuid() == 0
        values: dict[str, object] = {
            "uid": (UNPRIVILEGED_ID if self.uid is None else self.uid) if root else None,
            "gid": (UNPRIVILEGED_ID if self.gid is None else self.gid) if root else None,
            "quota_bytes": self.quota_bytes,
            "free_space_fraction": self.free_space_fraction,
            "connections": self.connections,
            "bytes_per_s": self.bytes_per_s,
            "registries": dict(self.registries),
            "log_level": self.log_level,
        }
        return msgspec.json.encode({key: value for key, value in values.items() if value is not None}).decode()


class _Starting:
    """A fetcher that this process has started, and that may not answer yet."""

    def __init__(self, child: process.Child, log: Path | None, last_words: Callable[[], str], report: int) -> None:
        """`report` is the reading end of the pipe on which it says why it cannot start; it becomes this object's."""
        self.child = child
        self.last_words = last_words
        self._log = log
        self._report = report

    def failure(self) -> WeightlessError:
        """Why it ended: its own words, or what can be seen from outside."""
        said = os.read(self._report, _MAX_REPORT_BYTES)  # its one writer has ended: never blocks
        with contextlib.suppress(msgspec.DecodeError):
            return from_fault(msgspec.json.decode(said, type=Fault))
        return Unavailable(f"the fetcher {self.child.fate}{self._last_line()}", where="fetcher", fix=_SEE_LOG)

    def _last_line(self) -> str:
        """Of its log: where a traceback has its message."""
        lines = self.last_words().split("\n")
        return next((f": {line.strip()[:_MAX_SAID]}" for line in reversed(lines) if line.strip()), "")

    def give_up(self) -> None:
        """Ends it if it still runs, and removes its log: what it said is in the error."""
        self.child.end(within_s=0)
        if self._log is not None:
            self._log.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._report)


def connect_or_start(settings: FetcherSettings, *, on_gone: Callable[[Connection], None]) -> tuple[Connection, bool]:
    """A connection to the fetcher of `settings.cache_dir`, and whether it had to be started, since none lived there.

    Raises what kept it from starting (NoSpace, InvalidConfig, Missing …), and Unavailable when it does not answer.
    """
    path = settings.cache_dir / protocol.SOCKET_NAME
    try:
        settings.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(error, "the cache directory", settings.cache_dir, choice=_CHOICE) from None
    deadline = time.monotonic() + _START_LIMIT_S
    started: _Starting | None = None
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionError, Unavailable):
                connection = Connection(path, on_gone=on_gone)
                if started is not None:
                    connection.belongs_to(started.child, started.last_words)
                return connection, started is not None
            if started is None:
                started = _start(settings, path)
                if started is not None:
                    stack.callback(started.close)
            elif started.child.wait(_POLL_S):
                failure = started.failure()
                started.give_up()
                raise failure
            if started is None:  # another process starts one just now, or its fetcher is ending
                time.sleep(_POLL_S)
            if time.monotonic() > deadline:
                if started is not None:
                    started.give_up()
                raise Unavailable(
                    f"the fetcher does not answer within {_START_LIMIT_S:.0f} s",
                    where=str(settings.cache_dir),
                    fix="see whether the machine is overloaded, or its disk hangs",
                )


def _start(settings: FetcherSettings, path: Path) -> _Starting | None:
    """Starts a fetcher with the lock of the cache directory; None when somebody else has it."""
    try:
        lock = os.open(path.with_name(protocol.LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise unusable(error, "the cache directory", settings.cache_dir, choice=_CHOICE) from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lock)  # the fetcher has its own reference to the same lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise Unavailable(f"cannot lock: {error.strerror}", where=str(settings.cache_dir)) from None
        path.unlink(missing_ok=True)  # nobody holds the lock: it is left over
        log = None if settings.log_to_stderr else log_path(settings)
        stderr, last_words = _passed_on() if log is None else _logged(log)
        stack.callback(os.close, stderr)
        report, reporting = os.pipe()
        stack.callback(os.close, reporting)
        argv = [sys.executable, *PROGRAM, "--cache-dir", os.fspath(settings.cache_dir.absolute())]
        argv += ["--settings", settings.argument(), "--lock-fd", str(lock), "--report-fd", str(reporting)]
        try:
            child = process.spawn(argv, pass_fds=(lock, reporting), stderr=stderr, proxies=True)
        except BaseException:
            os.close(report)
            raise
        return _Starting(child, log, last_words, report)


def _passed_on() -> tuple[int, Callable[[], str]]:
    """A standard error that is ours too; and what gives the last that was written there."""
    tee = process.Tee()
    return tee.writing, tee.last_words


def _logged(path: Path) -> tuple[int, Callable[[], str]]:
    def last_words() -> str:
        with contextlib.suppress(OSError):
            return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return fd, last_words
    except OSError as error:
        raise unusable(error, "the run directory", path.parent, choice=f"set {rundir.VARIABLE}") from None


def log_path(settings: FetcherSettings) -> Path:
    name = hashlib.sha256(os.fsencode(settings.cache_dir.absolute())).hexdigest()[:12]
    return settings.run_dir / f"fetcher-{name}.log"
