"""The process behind `weightless mount`: holds one mount, and ends when it is unmounted.

Started by the command with one end of a socket pair and none of its streams; it answers `Mounted` or `Failed` there and goes on
alone. Its log is a file in the run directory that goes away with it. With `--foreground` the command is this process itself.
When it is killed, the keeper holds the mount and starts a successor, which gets the order again, from memory, and takes the mount
up; when the keeper dies, the holder starts another.

The main thread waits for the end of the mount; `fuse.mounting` has threads of its own.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, Self

import msgspec
import structlog

from fuse import wire
from fuse.errors import Conflict, Fault, Unavailable, WeightlessError
from fuse.filesystem.table import View
from fuse.mounting import control
from fuse.mounting.keeper_client import KeeperClient
from fuse.mounting.mounts import Mounts
from weightless import wiring
from weightless.options import Settings
from weightless.signals import signals_call

_log = structlog.get_logger(__name__)
_GRANT: Final = "mount"
NODE: Final = "node"
"""The node plugin's name among the holders of a run directory."""
AGAIN: Final = "--again"
_SUCCESSOR_LIMIT_S: Final = 6.0
"""The keeper starts it at once, unless it died five times in a row: then after at most 5 s."""
_SUCCESSOR_STEP_S: Final = 0.05


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """What to mount where; sent by the command."""

    reference: str
    mountpoint: str
    """A real path (`fuse.mounting.device.usable_mountpoint`)."""
    view: View
    settings: Settings


class Mounted(msgspec.Struct, frozen=True, kw_only=True, tag="mounted"):
    reference: str
    """Pinned to the digest that was chosen."""
    bytes_total: int
    again: bool = False
    """The mount was there, left by a holder that died; now it is served again."""
    proven_at: float | None = None
    """As `ResolvedArtifact.proven_at`."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    fault: Fault


Answer = Mounted | Failed


def log_path(run_dir: Path, mountpoint: str, pid: int) -> Path:
    """Where the holder `pid` logs. Each has a log of its own: two may be told to mount on one directory at once."""
    return run_dir / f"{name_of(mountpoint)}.{pid}.log"


def name_of(mountpoint: str) -> str:
    """What a holder is called in the run directory; its successor finds the keeper by it."""
    return f"mount-{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:12]}"


class Holder:
    """Holds one mount. Use it as a context manager: leaving it unmounts."""

    def __init__(self, order: Order, run_dir: Path, *, log_to_stderr: bool) -> None:
        self._order = order
        self._ended = threading.Event()
        settings = wiring.holder_settings(
            order.settings,
            run_dir,
            name=name_of(order.mountpoint),
            log_to_stderr=log_to_stderr,
            successor=lambda: _successor(order),
        )
        self._manager = Mounts(settings, on_gone=lambda _: self._ended.set())
        self._run_dir = run_dir
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._manager.start()
        except Conflict as error:
            raise Conflict(
                "another weightless mount is mounting on this directory, or has mounted on it",
                where=self._order.mountpoint,
                fix="use that mount (weightless status), unmount it first, or name another directory",
            ) from error
        self._stack.callback(self._manager.close, keep=False)
        name = self._manager.settings.name
        _remove_other_logs(self._run_dir, name)
        server = control.ControlServer(self._manager, self._run_dir, name, on_idle=self._ended.set)
        self._stack.callback(server.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take_up(self) -> Mounted | None:
        """What a predecessor left at the place of the order; None when that is not there any more."""
        left = self._manager.find(Path(self._order.mountpoint))
        return self._take_up(left) if left is not None else None

    def mount(self, cancel: threading.Event) -> Mounted:
        """Mounts what was ordered, or takes up what a predecessor left at that place."""
        order, manager = self._order, self._manager
        left = self.take_up()
        if left is not None:
            return left
        access = wiring.access_reader(order.settings).access(order.reference)
        artifact = manager.resolve(order.reference, access, order.view, cancel=cancel)
        manager.acquire(
            artifact,
            Path(order.mountpoint),
            prefetch=order.settings.prefetch,
            verify=order.settings.verify,
            grant=_GRANT,
            access=access,
        )
        return Mounted(reference=artifact.reference, bytes_total=artifact.bytes_total, proven_at=artifact.proven_at)

    def _take_up(self, mount_id: str) -> Mounted:
        status = self._manager.status(mount_id)
        return Mounted(reference=status.reference, bytes_total=status.bytes_total, again=True)

    def end(self) -> None:
        """Makes `wait` return; from any thread."""
        self._ended.set()

    def wait(self) -> None:
        self._ended.wait()


def wait_for_successor(run_dir: Path, mountpoint: Path) -> control.Holder | None:
    """The holder that a keeper has started, or is about to start, for a mount whose holder died; None when there is no keeper."""
    deadline = time.monotonic() + _SUCCESSOR_LIMIT_S
    keeper = KeeperClient.find(run_dir / f"{name_of(str(mountpoint))}.keeper")
    if keeper is None:
        return None
    keeper.close()
    while time.monotonic() < deadline:
        for candidate in control.holders(run_dir):
            with suppress(Unavailable):
                if any(mount.mountpoint == str(mountpoint) for mount in candidate.statuses()):
                    return candidate
        time.sleep(_SUCCESSOR_STEP_S)
    return None


def _successor(order: Order) -> list[int]:
    """What the keeper needs to start another holder (`fuse.keeper`, `revive`): the program, and the order."""
    program = {
        "argv": [sys.executable, "-P", "-m", "weightless.holder", AGAIN, "3"],
        "env": dict(os.environ),
    }
    return [
        wire.sealed_memfd("weightless-successor", msgspec.json.encode(program)),
        wire.sealed_memfd("weightless-order", msgspec.json.encode(order)),
    ]


def _again(number: int) -> None:
    """The daemon, started by the keeper of one that died."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")  # the keeper's own is lower
    order = msgspec.json.decode(wire.read_whole(number, wire.MAX_MESSAGE_BYTES), type=Order)
    os.close(number)
    run_dir = wiring.begin(order.settings, "mount")
    log = log_path(run_dir, order.mountpoint, os.getpid())
    with log_file(log):
        holder = Holder(order, run_dir, log_to_stderr=True)
        with signals_call(holder.end), holder:
            for left in run_dir.glob(f"{name_of(order.mountpoint)}.*.log"):
                if left != log:  # we hold the lock: it is of one that was killed
                    left.unlink(missing_ok=True)
            if holder.take_up() is not None:
                _log.info("mount_taken_up", mountpoint=order.mountpoint)
                holder.wait()


def main() -> None:
    """The daemon. Its one argument is the number of the inherited socket, or `AGAIN` and the number of the order's file."""
    if sys.argv[1] == AGAIN:
        _again(int(sys.argv[2]))
        return
    channel: wire.Channel[Order] = wire.Channel(socket.socket(fileno=int(sys.argv[1])), Order)
    with channel:
        os.set_inheritable(channel.fileno(), False)
        received = channel.receive()
        if received is None:
            return
        order = received[0]
        try:
            run_dir = wiring.begin(order.settings, "mount")
            with log_file(log_path(run_dir, order.mountpoint, os.getpid())):
                serve(order, run_dir, _Caller(channel))
        except WeightlessError as error:
            _Caller(channel).answer(Failed(fault=error.to_fault()))


def serve(order: Order, run_dir: Path, caller: Caller) -> None:
    """Mounts, tells the caller, and returns when the mount is gone. Raises WeightlessError when it cannot be mounted."""
    cancel = threading.Event()
    holder = Holder(order, run_dir, log_to_stderr=True)

    def stop() -> None:
        cancel.set()
        holder.end()

    with signals_call(stop):
        caller.when_gone(cancel.set)
        try:
            with holder:
                # A caller that was interrupted meanwhile wants no mount any more: then leaving unmounts it.
                if caller.answer(holder.mount(cancel)):
                    holder.wait()
        except (OSError, ValueError, RuntimeError) as error:
            _log.exception("holder_failed")
            raise WeightlessError(f"{type(error).__name__}: {error}", where=order.mountpoint) from error


class Caller(Protocol):
    """Who wants the mount."""

    def answer(self, message: Answer) -> bool:
        """Tells how it went; whether anybody heard it."""
        ...

    def when_gone(self, call: Callable[[], None]) -> None:
        """Calls `call`, from some thread, when the caller gives up before it was answered."""
        ...


class _Caller:
    """The command at the other end of a socket, which it closes when it has heard enough."""

    def __init__(self, channel: wire.Channel[Order]) -> None:
        self._channel = channel
        self._answered = False

    def answer(self, message: Answer) -> bool:
        self._answered = True
        try:
            self._channel.send(message)
        except OSError:
            return False
        return True

    def when_gone(self, call: Callable[[], None]) -> None:
        def watch() -> None:
            with suppress(OSError, ValueError):
                self._channel.receive()
            if not self._answered:
                call()

        threading.Thread(target=watch, name="caller", daemon=True).start()


def remove_remains(run_dir: Path, mountpoint: Path) -> None:
    """What a holder that was killed has left in the run directory. For who holds the lock of its name."""
    name = name_of(str(mountpoint))
    for path in (run_dir / f"{name}{control.SUFFIX}", *run_dir.glob(f"{name}.*.log")):
        path.unlink(missing_ok=True)


def _remove_other_logs(run_dir: Path, name: str) -> None:
    """Holders of this name that were killed have left theirs. One that lives is being told that it is taken."""
    for path in run_dir.glob(f"{name}.*.log"):
        if path.name != f"{name}.{os.getpid()}.log":
            path.unlink(missing_ok=True)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Standard error is this file, which is removed at the end."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
