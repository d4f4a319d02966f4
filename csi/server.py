"""The gRPC server on its Unix socket.

gRPC itself would take over the socket of a living server without a word, and would make it for everybody. So the directory is
locked while we ask whether anyone answers there, remove what is dead, and bind; nothing but the socket is put beside it.
Threads; a call beyond their number is refused, never queued, so that a probe is answered at once.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

from csi.interceptors import Guard
from fuse.disk import unusable
from fuse.errors import Conflict, InvalidConfig

THREADS: Final = 64
_PROBE_LIMIT_S: Final = 2.0
_MAX_SOCKET_PATH: Final = 107
"""sun_path of unix(7), less its final NUL."""


def socket_path(endpoint: str) -> Path:
    """The path in `unix:///path`, `unix:/path` or `/path`. Raises InvalidConfig."""
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    fix = "give --endpoint (or CSI_ENDPOINT) as unix:///path/csi.sock"
    if not path.startswith("/") or "\0" in path:
        raise InvalidConfig(f"{endpoint!r:.200} is not the absolute path of a Unix socket", where="endpoint", fix=fix)
    if not path.endswith(".sock"):
        raise InvalidConfig(f"{endpoint!r:.200} does not end in .sock", where="endpoint", fix=fix)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidConfig(
            f"{path!r:.200} is longer than {_MAX_SOCKET_PATH} bytes, the kernel's limit",
            where="endpoint",
            fix="use a shorter directory",
        )
    return Path(path)


class Server:
    """A gRPC server that owns its socket. `register` adds the services."""

    def __init__(
        self, path: Path, register: Callable[[grpc.Server], None], guard: grpc.ServerInterceptor | None = None
    ) -> None:
        self.path = path
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="rpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[guard or Guard()],
            options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 4 * THREADS)],
            maximum_concurrent_rpcs=THREADS,
        )
        register(self._server)

    def start(self) -> None:
        """Raises Conflict when somebody serves there, InvalidConfig when the path cannot be used."""
        with _locked_directory(self.path):
            _remove_dead(self.path)
            # The socket is as good as root's shell: it is never there with wider permissions, not for a moment.
            umask = os.umask(0o177)
            try:
                self._server.add_insecure_port(f"unix:{self.path}")
            except RuntimeError as error:
                raise InvalidConfig(
                    "the socket cannot be bound",
                    where=str(self.path),
                    fix="give an --endpoint that this user may create",
                ) from error
            finally:
                os.umask(umask)
            self.path.chmod(0o600)
            self._server.start()

    def stop(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way finish for `grace_s`; gRPC removes the socket."""
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _locked_directory(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise unusable(error, "the directory of the socket", path.parent, choice="--endpoint") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_dead(path: Path) -> None:
    """Removes the socket file of a dead process."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise InvalidConfig("exists and is not a socket", where=str(path), fix="remove it, or give another --endpoint")
    if is_served(path):
        raise Conflict(
            "another node plugin serves this socket", where=str(path), fix="stop it first, or give another --endpoint"
        )
    path.unlink(missing_ok=True)


def is_served(path: Path) -> bool:
    """Whether a process listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_LIMIT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # A full backlog, or no answer: somebody holds it.
            return True
        return True
