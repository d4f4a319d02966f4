"""Checks of the directories: cache, state, sockets. Pure."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightless import units
from weightless.doctor.finding import Finding, broken, ok, skipped, warning

_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "lustre", "glusterfs"})
_LEAST_FREE_BYTES: Final = 1_000_000_000
_DEFAULT_FLOOR: Final = 0.05
_LEAST_ROOM_BYTES: Final = 1_000_000
"""For records and sockets, which take a few kilobytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """What was seen of one; of the nearest that exists, where it does not itself."""

    path: Path
    exists: bool
    is_directory: bool = True
    mode: int = 0o700
    owner: int = 0
    file_system: str = ""
    read_only: bool = False
    writable: bool = True
    """For this user; root may write whatever the mode says."""
    total_bytes: int = 0
    free_bytes: int = 0


def cache(seen: Directory, *, quota_bytes: int | None, free_space: float | None) -> Iterator[Finding]:
    check = "cache"
    yield from usable(check, seen, choice="cache-dir in weightless.toml", least_bytes=0)  # room has a check of its own
    kind = seen.file_system
    if kind in _REMOTE:
        yield warning(
            check, f"{seen.path} lies on {kind}, a file system of other machines", "use a local disk (--cache-dir)"
        )
    elif kind == "tmpfs":
        yield warning(
            check, f"{seen.path} lies in memory: it fills it, and is gone after a restart", "use a disk (--cache-dir)"
        )
    elif kind == "overlay":
        what = f"{seen.path} lies in a container's own layer: slow, and gone with the container"
        yield warning(check, what, "mount a directory of the node there (hostPath)")
    floor = int(seen.total_bytes * (_DEFAULT_FLOOR if free_space is None else free_space))
    room = seen.free_bytes - floor
    shown = f"{units.size(seen.free_bytes)} of {units.size(seen.total_bytes)} are free"
    cure = "free space on the disk, lower free-space, or put the cache elsewhere (--cache-dir)"
    if room <= 0:
        what = f"{shown}, and {units.size(floor)} have to stay free: only what the cache gives up makes room"
        yield warning("cache disk", what, cure)
    elif room < _LEAST_FREE_BYTES:
        yield warning("cache disk", f"{shown}: {units.size(room)} are left for models", cure)
    elif quota_bytes is not None and quota_bytes > seen.total_bytes - floor:
        what = f"the quota of {units.size(quota_bytes)} is more than the disk can give, {units.size(seen.total_bytes - floor)}"
        yield warning("cache disk", what, "lower [cache] quota, or use a larger disk")
    else:
        quota = f", quota {units.size(quota_bytes)}" if quota_bytes else ""
        yield ok("cache disk", f"{shown}{quota}")


def usable(check: str, seen: Directory, *, choice: str, least_bytes: int = _LEAST_ROOM_BYTES) -> Iterator[Finding]:
    """A directory of ours, which is made where it is missing."""
    if not seen.is_directory:
        yield broken(check, f"{seen.path} is a file", f"move it away, or name another directory: {choice}")
    elif seen.read_only:
        yield broken(check, f"{seen.path} lies on a read-only file system", f"name another directory: {choice}")
    elif not seen.writable:
        what = f"this user may not write {seen.path}" if seen.exists else f"this user may not make {seen.path}"
        yield broken(check, what, f"give it the right, or name another directory: {choice}")
    elif seen.free_bytes < least_bytes:
        what = f"the disk of {seen.path} is full, {units.size(seen.free_bytes)} are free: nothing can be recorded there"
        yield broken(check, what, f"free space on it, or name another directory: {choice}")
    elif seen.exists and stat.S_IMODE(seen.mode) & 0o022:
        what = f"{seen.path} may be written by others (mode {stat.S_IMODE(seen.mode):04o}): they decide what is read"
        yield broken(check, what, f"chmod 0700 {seen.path}")
    elif seen.exists:
        yield ok(check, str(seen.path))
    else:
        yield skipped(check, f"{seen.path} is not there yet, and will be made")


def records(unreadable: int, total: int) -> Finding:
    """Of published volumes, in the state directory."""
    if unreadable:
        return warning(
            "records",
            f"{unreadable} of {total} records of volumes cannot be read: orphans are not cleaned up while they are there",
            "run the version that wrote them, or unpublish the volumes (delete their pods)",
        )
    return ok("records", f"{total} volumes are recorded")
