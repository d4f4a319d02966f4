"""The fetcher's process: `python -m fuse.fetch --cache-dir DIR [--settings JSON] [--lock-fd FD] [--report-fd FD]`.

One a cache directory, which the lock says. It listens on `fetcher.sock` there, becomes an unprivileged user if root started
it, and ends as soon as its last administrator has gone. It keeps nothing that the disk does not hold. Where it cannot start, the
reason is written to the report descriptor, as one `Fault` in JSON, for whoever started it.
"""

from __future__ import annotations

import argparse
import encodings.idna  # needed by host names; once unprivileged, Python's own files may be out of reach
import encodings.punycode  # noqa: F401  (as well, for those that are not ASCII, or begin with xn--)
import fcntl
import gc
import os
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from fuse import logs, threads, tracing, wire
from fuse.cache.layout import examine
from fuse.cache.store import CacheStore
from fuse.disk import unusable
from fuse.errors import Conflict, InvalidRequest, Missing, WeightlessError
from fuse.fetch import protocol, tally
from fuse.fetch.copier import Copier
from fuse.fetch.engine import Engine
from fuse.fetch.privileges import confine, drop, give_directory
from fuse.fetch.proofs import Proofs
from fuse.fetch.server import Connection
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.transfer import Lanes
from fuse.fetch.verify import Verifier
from fuse.registry.access import Endpoint
from fuse.registry.transport import Transport

LOCK_NAME: Final = "fetcher.lock"
_FIRST_CONNECTION_S: Final = 30.0
_AGAIN_S: Final = 0.1
_BYE_S: Final = 2.0
_BYE_TRACES_S: Final = 0.3
_CHOICE: Final = "--cache-dir, or cache-dir in weightless.toml"
_TOUCH_S: Final = 600.0
"""How old the last use of a mounted blob may look on the disk, should the node die."""

_log = structlog.get_logger(__name__)


class Process:
    """The listening socket and everything behind it."""

    def __init__(self, listener: socket.socket, settings: FetcherSettings, administrators: frozenset[int]) -> None:
        self._listener = listener
        self._administrators = administrators
        self._transport = Transport()
        self._engine = Engine(CacheStore(Path()), settings)
        self._transport.health.on_failure = self._failed
        self._proofs = Proofs(self._engine.shelf.store.objects, Path("objects"))
        self._verifier = Verifier(self._engine)
        self._lanes = Lanes(self._engine)
        self._copier = Copier(self._engine.shelf, self._engine.dispatch)
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._wake_receive, self._wake_send = socket.socketpair()
        self._wake_send.setblocking(False)
        self._wake_receive.setblocking(False)
        self._stopping = False
        self._engine.shelf.on_cache_gone = self._cache_gone

    def serve(self) -> None:
        """Returns when the last administrator has gone, when none came, or on SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_send.fileno(), warn_on_full_buffer=False)
        self._verifier.start()
        self._lanes.start()
        self._copier.start()
        self._listener.setblocking(False)
        touched = time.monotonic()
        deadline: float | None = time.monotonic() + _FIRST_CONNECTION_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_receive, selectors.EVENT_READ)
            while not self._stopping:
                selector.select(_TOUCH_S if deadline is None else max(0.0, deadline - time.monotonic()))
                if time.monotonic() >= touched + _TOUCH_S:
                    touched = time.monotonic()
                    self._engine.shelf.touch()
                with suppress(BlockingIOError):
                    self._wake_receive.recv(4096)
                # Whoever waits to be accepted counts: it came before the last one left.
                accepted = self._accept()
                if accepted:
                    deadline = None
                with self._lock:
                    idle = not self._connections
                if idle and (deadline is None or time.monotonic() >= deadline):
                    break

    def _accept(self) -> bool:
        accepted = False
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return accepted
            except OSError as error:  # no descriptors, for the moment
                _log.error("administrator_not_accepted", error=str(error))
                time.sleep(_AGAIN_S)
                return accepted
            sock.setblocking(True)
            uid = wire.peer_uid(sock)
            if uid not in self._administrators:
                _log.warning("administrator_refused", uid=uid)
                sock.close()
                continue
            connection = Connection(sock, self._engine, self._transport, self._proofs, self._copier, self._ended)
            with self._lock:
                self._connections.add(connection)
            if not threads.begin(connection):
                sock.close()
                self._ended(connection)
                continue
            accepted = True

    def _ended(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
        with suppress(BlockingIOError):
            self._wake_send.send(b"\0")

    def _failed(self, endpoint: Endpoint, kind: str) -> None:
        self._engine.tally.add(f"{tally.FAILURE}.{'registry' if endpoint.origin else 'mirror'}.{kind}")

    def _cache_gone(self) -> None:
        _log.error("cache_directory_gone")  # whoever needs us starts another fetcher, in a new directory
        self._stopping = True
        with suppress(BlockingIOError):
            self._wake_send.send(b"\0")

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def close(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()
        self._engine.dispatch.close()
        self._verifier.close()
        self._copier.close()
        self._lanes.join(0.2)
        if self._copier.is_alive():
            self._copier.join(0.2)  # it takes away what it has not finished
        for connection in connections:
            connection.join(_BYE_S)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuse.fetch")
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--lock-fd", type=int, default=None)
    parser.add_argument("--report-fd", type=int, default=None)
    options = parser.parse_args(arguments)
    if options.report_fd is not None:
        os.set_inheritable(options.report_fd, False)
    try:
        settings = _settings(options.settings)
        logs.configure("fetcher", settings.log_level)
        run(options.cache_dir, settings, options.lock_fd)
    except WeightlessError as error:
        _log.error("fetcher_not_started", kind=error.kind, error=str(error))
        if options.report_fd is not None:
            with suppress(OSError):  # whoever started it may have gone
                os.write(options.report_fd, msgspec.json.encode(error.to_fault()))
        return 1
    return 0


def run(cache_dir: Path, settings: FetcherSettings, lock_fd: int | None) -> None:
    """Serves the cache directory until nobody needs it any more."""
    starter = os.getuid()
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # From here on only relative names: the way here may be closed to the user that this process becomes.
        os.chdir(cache_dir)
        examine(Path())
        lock_fd = _locked(lock_fd)
        if starter == 0:
            give_directory(Path(), settings.uid, settings.gid)
        listener = _listen()
    except OSError as error:
        raise unusable(error, "the cache directory", cache_dir, choice=_CHOICE) from error
    tracing.start("fetcher")  # while Python's files can be reached
    try:
        if starter == 0:
            drop(settings.uid, settings.gid)
        confine()
    except OSError as error:
        raise Missing(
            f"the fetcher cannot give up its rights: {error.strerror}",
            where=f"user {settings.uid}, group {settings.gid}",
            fix="root needs the capabilities SETUID and SETGID for that",
        ) from error
    try:
        # Threads of ours that are in the interpreter give it up sooner: the default of 5 ms makes convoys behind transfers.
        sys.setswitchinterval(0.0005)
        try:
            process = Process(listener, settings, frozenset({0, starter}))
        except OSError as error:
            raise unusable(error, "the cache directory", cache_dir, choice=_CHOICE) from error
        gc.collect()
        gc.freeze()
        try:
            process.serve()
        finally:
            with suppress(OSError):
                Path(protocol.SOCKET_NAME).unlink()
            listener.close()
            process.close()
            tracing.stop(_BYE_TRACES_S)
    finally:
        os.close(lock_fd)


def _settings(text: str) -> FetcherSettings:
    try:
        return msgspec.json.decode(text, type=FetcherSettings)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"the settings cannot be understood: {error}", where="fetcher", fix="use one version of weightless"
        ) from error


def _locked(lock_fd: int | None) -> int:
    """The descriptor that holds the directory's lock: the starter's, or one of our own."""
    fd = lock_fd if lock_fd is not None else os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.set_inheritable(fd, False)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict("another fetcher serves this cache directory", where=str(Path.cwd())) from None
    return fd


def _listen() -> socket.socket:
    """The listening socket, owned by the user who started us: workers, who are another, cannot even connect."""
    with suppress(FileNotFoundError):
        Path(protocol.SOCKET_NAME).unlink()  # we hold the lock, so nobody listens there
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(protocol.SOCKET_NAME)
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # Threads may sit in a registry's socket; nothing of theirs is worth waiting for.
    os._exit(code)
