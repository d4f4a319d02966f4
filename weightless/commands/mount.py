"""`weightless mount`: starts a holder for the mount and returns when the files can be read, or says why not.

The holder is a session of its own, holds none of the caller's streams, and answers over an inherited socket.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fuse import wire
from fuse.errors import MountFailed, WeightlessError, from_fault
from fuse.mounting import control, device
from fuse.mounting.mountinfo import MountTable, resolve
from weightless import console, holder, units, wiring
from weightless.options import Settings

_GIVE_UP_S: Final = 10.0


def run(
    settings: Settings,
    reference: str,
    directory: Path,
    *,
    exclude: tuple[str, ...],
    exclude_weights: bool,
    foreground: bool,
) -> None:
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    mountpoint, orphaned = _mountpoint(directory, run_dir)
    if orphaned and holder.wait_for_successor(run_dir, mountpoint) is not None:
        console.say(f"{directory} is mounted, its holder had died: it is served again")
        return
    order = holder.Order(
        reference=reference,
        mountpoint=str(mountpoint),
        view=wiring.view(exclude, exclude_weights=exclude_weights),
        settings=settings,
    )
    if foreground:
        holder.serve(order, run_dir, _Here(directory))
        return
    _tell(_start(order, run_dir), directory)


def _mountpoint(directory: Path, run_dir: Path) -> tuple[Path, bool]:
    """Where to mount, and whether that is a mount of ours whose holder died: it is served again."""
    try:
        return device.usable_mountpoint(directory), False
    except WeightlessError:
        with contextlib.suppress(OSError):
            path = resolve(directory.absolute())
            there = MountTable.read().at(path)
            keeper = run_dir / f"{holder.name_of(str(path))}.keeper"
            orphaned = there is not None and there.ours and (there.native or keeper.exists())
            if orphaned and all(mount.mountpoint != str(path) for mount in control.statuses(run_dir)):
                return path, True
        raise


def _start(order: holder.Order, run_dir: Path) -> holder.Mounted:
    ours, theirs = wire.pair()
    channel: wire.Channel[holder.Answer] = wire.Channel(ours, holder.Answer)
    with channel:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "weightless.holder", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
                env={**os.environ, "WEIGHTLESS_RUN_DIR": str(run_dir)},
            )
        try:
            channel.send(order)
            with _waiting(f"mounting {order.reference}"):
                received = channel.receive()
        except OSError:
            received = None
        except KeyboardInterrupt:
            channel.hang_up()  # It takes back what it has done so far, and ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GIVE_UP_S)
            raise
    if received is None:
        raise MountFailed(
            f"the holder died before it had mounted: {_last_words(order, run_dir, process.pid)}", where=order.mountpoint
        )
    answer = received[0]
    if isinstance(answer, holder.Failed):
        # It ends now; what it started is gone when it is.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GIVE_UP_S)
        raise from_fault(answer.fault)
    process.returncode = 0  # It lives on, and is nobody's child to wait for: Popen must not complain.
    return answer


def _tell(mounted: holder.Mounted, directory: Path) -> None:
    if mounted.again:
        console.say(f"{mounted.reference} was mounted on {directory}, its holder had died: it is served again")
        return
    console.say(f"mounted {mounted.reference} on {directory} ({units.size(mounted.bytes_total)})")
    if mounted.proven_at is not None:
        days = max(0.0, time.time() - mounted.proven_at) / 86400
        console.note(
            f"the registry cannot be reached: mounted by the offline policy, on a proof {days:.1f} days old; "
            "what is not in the cache is waited for"
        )


def _last_words(order: holder.Order, run_dir: Path, pid: int) -> str:
    log = holder.log_path(run_dir, order.mountpoint, pid)
    with contextlib.suppress(OSError):
        text = console.one_line(log.read_text(errors="replace")[-500:])
        log.unlink()
        return text
    return "it left no log"


@contextlib.contextmanager
def _waiting(text: str) -> Iterator[None]:
    """A sign of life on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(console.plain(text)):
        yield


class _Here:
    """With `--foreground` the caller is this terminal; giving up is a signal, which the holder handles."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def answer(self, message: holder.Answer) -> bool:
        if isinstance(message, holder.Mounted):
            _tell(message, self._directory)
            console.note("Ctrl-C unmounts")
        return True

    def when_gone(self, call: Callable[[], None]) -> None:
        pass
