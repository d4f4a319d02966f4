"""`weightless status`: the mounts of all holders of this user (for root: of the machine's node plugin as well).

The exit code says whether the question could be answered, not how the mounts are: 0 also when one is broken.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from fuse.mounting import control, rundir
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.status import MountStatus
from weightless import console, units
from weightless.options import Settings


def run(settings: Settings, *, json: bool) -> None:
    del settings
    run_dir = rundir.run_dir()
    mounts = sorted(control.statuses(run_dir), key=lambda mount: mount.mountpoint)
    unanswered = _unanswered(mounts)
    for place in unanswered:
        console.note(
            f"{place} is mounted, but no process in {run_dir} answers for it: mount there again to serve it, or unmount it"
        )
    if json:
        console.say(msgspec.json.format(msgspec.json.encode([_document(mount) for mount in mounts])).decode())
        return
    if not mounts:
        console.note("nothing else is mounted" if unanswered else "nothing is mounted")
        return
    columns = (
        "mountpoint",
        "reference",
        "served by",
        "cached",
        "rate",
        "reads",
        "waits",
        "state",
        "since",
        "restarts",
        "reason",
    )
    drawn = console.table(*columns, right=("reads",), whole=("state",))
    for mount in mounts:
        drawn.add_row(
            console.plain(mount.mountpoint),
            console.plain(mount.reference),
            mount.served_by,
            _cached(mount),
            units.rate(mount.rate_bytes_per_s) if mount.rate_bytes_per_s >= 1 else "-",
            str(mount.reads),
            _waits(mount),
            mount.condition.state,
            _since(mount),
            _restarts(mount),
            console.plain(_reason(mount)),
        )
    console.show(drawn)


def _unanswered(mounts: list[MountStatus]) -> list[str]:
    """Where the kernel has mounts of ours that no holder told of: theirs died, or belongs to another user."""
    entries = [entry for entry in MountTable.read().entries if entry.ours]
    known = {mount.mountpoint for mount in mounts}
    answered = {entry.device for entry in entries if str(entry.mountpoint) in known}
    places: dict[str, str] = {}
    for entry in entries:
        if entry.device not in answered:
            places.setdefault(entry.device, str(entry.mountpoint))
    return list(places.values())


def _cached(mount: MountStatus) -> str:
    if not mount.bytes_total:
        return "-"
    share = mount.bytes_cached / mount.bytes_total
    copied = f", and {units.size(mount.bytes_copied)} of copies" if mount.bytes_copied else ""
    return f"{units.size(mount.bytes_cached)} of {units.size(mount.bytes_total)} ({share:.0%}){copied}"


def _waits(mount: MountStatus) -> str:
    """Reads that wait now, and how long all have waited so far."""
    now = f"{mount.waiting} now, " if mount.waiting else ""
    return f"{now}{units.duration(mount.waited_s)}" if mount.waiting or mount.waited_s else "-"


def _since(mount: MountStatus) -> str:
    since = mount.condition.since
    return f"{units.duration(max(0.0, time.time() - since))} ago" if since else "-"


def _reason(mount: MountStatus) -> str:
    """The code, which the documentation explains, and the words."""
    condition = mount.condition
    if condition.state == "healthy":
        return "-"
    return f"{condition.cause[1]}: {condition.reason}"


def _document(mount: MountStatus) -> dict[str, Any]:
    """The status as it travels, and the time of the condition as people and most programs write it."""
    document: dict[str, Any] = msgspec.to_builtins(mount)
    document["condition"]["since_iso"] = mount.condition.since_iso
    return document


def _restarts(mount: MountStatus) -> str:
    """Of what serves it, since its holder started; --json has the reasons."""
    told = {"worker": mount.worker_restarts, "fetcher": mount.fetcher_restarts, "keeper": mount.keeper_restarts}
    return ", ".join(f"{name} {restarts.count}" for name, restarts in told.items() if restarts.count) or "-"
