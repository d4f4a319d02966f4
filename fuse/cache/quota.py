"""What to remove from the cache, and how much room there is. Pure arithmetic; the caller looks at the disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a disk the cache may take."""

    quota_bytes: int = 0
    """0: no quota of its own, only the disk's limits."""
    free_space_fraction: float = 0.05
    """The part of the file system that stays free for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    total_bytes: int
    free_bytes: int
    """Free to a user without privileges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A blob that could be removed."""

    name: str
    disk_bytes: int
    used_at: float
    pinned: bool
    rejected: bool = False
    """Set aside because it did not match its digest: the first to go."""
    copy: bool = False
    """Of a part of another blob: without it readers are a little slower, and nothing has to be fetched. The next to go."""


def shortage(limits: Limits, disk: Disk, *, used_bytes: int, wanted_bytes: int) -> int:
    """How many bytes must be freed before `wanted_bytes` may be written; 0 when there is room."""
    over_quota = used_bytes + wanted_bytes - limits.quota_bytes if limits.quota_bytes else 0
    floor = int(disk.total_bytes * limits.free_space_fraction)
    over_disk = wanted_bytes - (disk.free_bytes - floor)
    return max(0, over_quota, over_disk)


def victims(candidates: Iterable[Candidate], shortage_bytes: int) -> list[Candidate]:
    """What to remove to free `shortage_bytes`: rejected blobs, copies, then the rest; of each the least recently
    used first, and never a pinned one.

    All that can be removed when that is not enough: then there is at least more room than before.
    """
    chosen: list[Candidate] = []
    removable = (candidate for candidate in candidates if not candidate.pinned)
    for candidate in sorted(removable, key=lambda item: (not item.rejected, not item.copy, item.used_at, item.name)):
        if shortage_bytes <= 0:
            break
        chosen.append(candidate)
        shortage_bytes -= candidate.disk_bytes
    return chosen
