"""`weightless status`: the mounts of all holders of this user (for root: of the machine's node plugin as well)."""

from __future__ import annotations

import msgspec

from fuse.mounting import control, rundir
from fuse.mounting.status import MountStatus
from weightless import console, units
from weightless.options import Settings


def run(settings: Settings, *, json: bool) -> None:
    del settings
    mounts = sorted(control.statuses(rundir.run_dir()), key=lambda mount: mount.mountpoint)
    if json:
        console.say(msgspec.json.format(msgspec.json.encode(mounts)).decode())
        return
    if not mounts:
        console.note("nothing is mounted")
        return
    drawn = console.table("mountpoint", "reference", "cached", "rate", "reads", "waits", "condition", right=("reads",))
    for mount in mounts:
        drawn.add_row(
            console.plain(mount.mountpoint),
            console.plain(mount.reference),
            _cached(mount),
            units.rate(mount.rate_bytes_per_s) if mount.rate_bytes_per_s >= 1 else "-",
            str(mount.reads),
            _waits(mount),
            console.plain(_condition(mount)),
        )
    console.show(drawn)


def _cached(mount: MountStatus) -> str:
    if not mount.bytes_total:
        return "-"
    share = mount.bytes_cached / mount.bytes_total
    return f"{units.size(mount.bytes_cached)} of {units.size(mount.bytes_total)} ({share:.0%})"


def _waits(mount: MountStatus) -> str:
    """Reads that wait now, and how long all have waited so far."""
    now = f"{mount.waiting} now, " if mount.waiting else ""
    return f"{now}{units.duration(mount.waited_s)}" if mount.waiting or mount.waited_s else "-"


def _condition(mount: MountStatus) -> str:
    return mount.condition.state + (f": {mount.condition.reason}" if mount.condition.reason else "")
