"""`weightless unmount`: returns when the mount and the processes behind it are gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fuse.errors import Conflict, InvalidRequest, NotFound, Unavailable
from fuse.mounting import control
from fuse.mounting.mountinfo import Entry, MountTable, resolve
from fuse.mounting.mounts import Mounts
from weightless import console, holder, wiring
from weightless.options import Settings

_LIST = "weightless status shows what is mounted"


def run(settings: Settings, directory: Path, *, lazy: bool) -> None:
    run_dir = wiring.begin(settings)
    path = _mounted(directory)
    found = _holder(run_dir, path) or holder.wait_for_successor(run_dir, path)
    if found is not None and found.name == holder.NODE:
        raise InvalidRequest(
            "belongs to the node plugin, pods may use it",
            where=str(directory),
            fix="delete the pods; it is unmounted then",
        )
    try:
        if found is None:
            _orphan(settings, run_dir, path, lazy=lazy)
        else:
            found.unmount(path, lazy=lazy)
    except Conflict as error:
        fix = "close what uses it, or run weightless unmount --lazy"
        raise Conflict(error.what, where=str(directory), fix=fix if not lazy else "") from None
    console.say(f"unmounted {directory}")


def _mounted(directory: Path) -> Path:
    """The real path of a mount of ours. Raises NotFound or InvalidRequest. Never looks at the mount itself."""
    table = MountTable.read()
    try:
        path = resolve(directory.absolute(), table)
    except OSError as error:
        raise NotFound(error.strerror or "cannot be found", where=str(directory), fix=_LIST) from None
    there: Entry | None = table.at(path)
    if there is None:
        raise NotFound("nothing is mounted there", where=str(directory), fix=_LIST)
    if not there.ours:
        raise InvalidRequest(
            f"is a mount of {there.file_system}, not of weightless", where=str(directory), fix="use umount"
        )
    return path


def _holder(run_dir: Path, path: Path) -> control.Holder | None:
    """Who holds the mount; None when that process died."""
    for candidate in control.holders(run_dir):
        with contextlib.suppress(Unavailable):
            for mount in candidate.statuses():
                # The node plugin's binds are pods' volumes. Those of a mount of a person are that person's.
                if mount.mountpoint == str(path) or (candidate.name == holder.NODE and str(path) in mount.targets):
                    return candidate
    return None


def _orphan(settings: Settings, run_dir: Path, path: Path, *, lazy: bool) -> None:
    """The holder died: this process becomes its successor for a moment, takes the mount back from the keeper and ends it."""
    with _successor(settings, run_dir, path) as manager:
        holder.remove_remains(run_dir, path)
        found = manager.find(path)
        if found is not None:
            manager.unmount(found, lazy=lazy)
            return
    # The keeper had nothing: the mount is dead, and only its place in the tree is left.
    wiring.unmount_path(path, lazy=lazy)


@contextlib.contextmanager
def _successor(settings: Settings, run_dir: Path, path: Path) -> Iterator[Mounts]:
    name = holder.name_of(str(path))
    manager = Mounts(wiring.holder_settings(settings, run_dir, name=name, log_to_stderr=False))
    manager.start()
    try:
        yield manager
    except BaseException:
        manager.close(keep=True)  # As busy as it was before; a later attempt finds it again.
        raise
    manager.close(keep=False)
