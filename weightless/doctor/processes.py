"""Checks of what runs: the sockets that should be answered, and the mounts of those who answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from fuse.mounting.status import MountStatus
from weightless.doctor.finding import Finding, State, broken, ok, skipped

Answer = Literal["answers", "refuses", "absent"]
_CURES = {
    "node plugin": "start it: kubectl get pods of its DaemonSet on this node, and their logs (--previous)",
    "keeper": "start weightless keeper before the plugin; as long as there is none, mounts end with the plugin",
    "fetcher": "it is started by whoever needs it; remove the socket if nothing of weightless runs",
}


def listener(name: str, path: Path, answer: Answer, *, wanted: bool) -> Finding:
    """A process behind a socket. `wanted`: it should be there; else only a dead socket is worth a word."""
    if answer == "answers":
        return ok(name, f"answers at {path}")
    if answer == "absent" and not wanted:
        return skipped(name, "none runs here")
    what = f"nobody listens at {path}" if answer == "absent" else f"{path} is there, and nobody answers"
    return broken(name, what, _CURES[name])


def mounts(statuses: Sequence[MountStatus]) -> Iterator[Finding]:
    """What is not well, in the words of `weightless status`."""
    unwell = [mount for mount in statuses if mount.condition.state != "healthy"]
    for mount in unwell:
        state: State = "broken" if mount.condition.state == "broken" else "warning"
        reason = mount.condition.cause[1]
        yield Finding(
            check="mount",
            state=state,
            what=f"{mount.mountpoint}: {mount.condition.sentence()}",
            cure=f"docs/OPERATIONS.md, section {reason}",
        )
    if not unwell:
        yield ok("mounts", f"{len(statuses)} are served, all healthy")
