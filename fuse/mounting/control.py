"""The control socket of a holder, and how commands speak to the holders of a run directory.

One request and its answer a connection. Only the holder's own user and root may ask. The server is one thread; an unmount is done
on it, so that two of them never meet.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from fuse import wire
from fuse.errors import Fault, MountFailed, NotFound, Unavailable, WeightlessError, from_fault
from fuse.mounting import mountinfo, process
from fuse.mounting.status import Health, MountStatus

__all__ = [
    "ControlServer",
    "Health",
    "Holder",
    "MountStatus",
    "holders",
    "statuses",
    "unmount",
]

SUFFIX: Final = ".sock"
_REQUEST_LIMIT_S: Final = 5.0
_ANSWER_LIMIT_S: Final = 60.0
_END_LIMIT_S: Final = 60.0

_log = structlog.get_logger()


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    pass


class Status(_Message, frozen=True, kw_only=True, tag="status"):
    """Answered by one or more `Statuses`."""


class Unmount(_Message, frozen=True, kw_only=True, tag="unmount"):
    """Answered by `Unmounted` or `Refused`."""

    mountpoint: str
    lazy: bool = False


class Statuses(_Message, frozen=True, kw_only=True, tag="statuses"):
    mounts: tuple[MountStatus, ...]
    last: bool


class Unmounted(_Message, frozen=True, kw_only=True, tag="unmounted"):
    ending: bool
    """The holder held nothing else and ends now: wait for its process."""


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    fault: Fault


Request = Status | Unmount
Answer = Statuses | Unmounted | Refused


class Mounts(Protocol):
    """What is needed of a `MountManager`."""

    def statuses(self) -> list[MountStatus]: ...

    def find(self, mountpoint: Path) -> str | None: ...

    def unmount(self, mount_id: str, *, lazy: bool = False) -> object: ...


class ControlServer:
    """Answers commands. Made after `MountManager.start`, whose lock makes the name this process's own."""

    def __init__(self, mounts: Mounts, run_dir: Path, name: str, *, on_idle: Callable[[], None] | None = None) -> None:
        """`on_idle` is called when the last mount was unmounted by a command; the holder must end then."""
        self._mounts = mounts
        self._on_idle = on_idle
        self.path = run_dir / f"{name}{SUFFIX}"
        self.path.unlink(missing_ok=True)
        self._listener = wire.listen(self.path)
        self._stop, self._stopped = wire.pair()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the request under way is answered."""
        self._stop.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._stopped, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._stopped.fileno() in ready:
                break
            with suppress(OSError):
                self._accept()
        self.path.unlink(missing_ok=True)
        self._listener.close()
        self._stopped.close()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(_REQUEST_LIMIT_S)
        channel: wire.Channel[Request] = wire.Channel(sock, Request)
        with channel:
            if wire.peer_uid(sock) not in (0, os.geteuid()):
                return
            try:
                received = channel.receive()
                if received is not None:
                    request, fds = received
                    wire.close_all(fds)
                    self._answer(channel, request)
            except (OSError, ValueError) as error:
                _log.warning("control_failed", error=str(error))
            except Exception:  # noqa: BLE001  (the edge of a thread)
                _log.exception("control_broken")

    def _answer(self, channel: wire.Channel[Request], request: Request) -> None:
        ending = False
        try:
            if isinstance(request, Status):
                portions = tuple(wire.portions(self._mounts.statuses()))
                for number, mounts in enumerate(portions, 1):
                    channel.send(Statuses(mounts=mounts, last=number == len(portions)))
                return
            mount_id = self._mounts.find(Path(request.mountpoint))
            if mount_id is None:
                raise NotFound("nothing of this holder is mounted there", where=request.mountpoint)
            self._mounts.unmount(mount_id, lazy=request.lazy)
            ending = self._on_idle is not None and not self._mounts.statuses()
            channel.send(Unmounted(ending=ending))
        except WeightlessError as error:
            channel.send(Refused(fault=error.to_fault()))
        finally:
            if ending and self._on_idle is not None:
                self._on_idle()


# ---- for commands ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds mounts, by its control socket."""

    name: str
    path: Path

    def statuses(self) -> list[MountStatus]:
        """Raises Unavailable when it does not answer."""
        found: list[MountStatus] = []
        with _connect(self.path) as channel:
            channel.send(Status())
            while True:
                answer = _receive(channel, self.path)
                if not isinstance(answer, Statuses):
                    raise Unavailable("the holder answers something else", where=str(self.path))
                found.extend(answer.mounts)
                if answer.last:
                    return found

    def unmount(self, mountpoint: Path, *, lazy: bool = False) -> None:
        """Returns when it is unmounted and what served nothing else is gone. Raises what the holder says."""
        with _connect(self.path) as channel:
            pid = wire.peer_credentials(channel.sock)[0]
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise Unavailable("the holder ended just now", where=str(self.path)) from None
            try:
                channel.send(Unmount(mountpoint=os.fspath(mountpoint), lazy=lazy))
                answer = _receive(channel, self.path)
                if isinstance(answer, Unmounted) and answer.ending and not process.wait_for_pidfd(pidfd, _END_LIMIT_S):
                    raise MountFailed(f"unmounted, but process {pid} does not end", where=str(mountpoint))
            finally:
                os.close(pidfd)


def holders(run_dir: Path) -> list[Holder]:
    """The holders whose sockets are there; one that died without notice is among them, and does not answer."""
    return [Holder(name=path.name.removesuffix(SUFFIX), path=path) for path in sorted(run_dir.glob(f"*{SUFFIX}"))]


def statuses(run_dir: Path) -> list[MountStatus]:
    """Of all holders that answer."""
    found: list[MountStatus] = []
    for holder in holders(run_dir):
        with suppress(Unavailable):
            found.extend(holder.statuses())
    return found


def unmount(run_dir: Path, mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmounts what any holder has at `mountpoint`, and returns when what served nothing else is gone.

    Raises NotFound when nobody has anything there, Conflict when it is busy.
    """
    real = mountinfo.resolve(mountpoint)
    for holder in holders(run_dir):
        with suppress(Unavailable):
            if any(mount.mountpoint == os.fspath(real) for mount in holder.statuses()):
                holder.unmount(real, lazy=lazy)
                return
    raise NotFound("no model is mounted there", where=str(mountpoint), fix="weightless status lists what is mounted")


def _connect(path: Path) -> wire.Channel[Answer]:
    try:
        sock = wire.connect(path)
    except OSError as error:
        raise Unavailable(f"the holder does not answer: {error.strerror}", where=str(path)) from None
    sock.settimeout(_ANSWER_LIMIT_S)
    return wire.Channel(sock, Answer)


def _receive(channel: wire.Channel[Answer], path: Path) -> Answer:
    try:
        received = channel.receive()
    except (OSError, ValueError) as error:
        raise Unavailable(f"the holder does not answer: {error}", where=str(path)) from None
    if received is None:
        raise Unavailable("the holder ended", where=str(path))
    answer, fds = received
    wire.close_all(fds)
    if isinstance(answer, Refused):
        raise from_fault(answer.fault)
    return answer
