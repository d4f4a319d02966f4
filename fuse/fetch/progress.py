"""What a mount's state says to people: how much is there, how fast it comes, what is wrong.

Reads the engine's state; called with its lock held.
"""

from __future__ import annotations

import errno
import time
from typing import Final

from fuse.errors import CacheFailed, NoSpace, WeightlessError
from fuse.fetch import protocol
from fuse.fetch.mounts import Mount

CacheTrouble = tuple[float, WeightlessError]
"""Since when (Unix time) and why nothing can be cached."""


def progress_of(
    mount: Mount, request_id: int, *, trouble: CacheTrouble | None, totals: protocol.FetcherTotals
) -> protocol.MountProgress:
    """`trouble`: what is wrong with the cache itself; a mount whose bytes are all there has none of it."""
    now = time.monotonic()
    blobs = mount.distinct
    stalled = min(mount.stalled.values(), key=lambda stall: stall[0], default=None)
    if stalled is None and trouble is not None and not all(blob.complete for blob in blobs):
        stalled = (trouble[0], trouble[1].to_fault())
    failure = next((error for blob in mount.blobs if (error := blob.rejected or blob.failure)), None)
    return protocol.MountProgress(
        id=request_id,
        bytes_cached=sum(blob.bytes_cached for blob in blobs),
        bytes_total=sum(blob.size for blob in blobs),
        bytes_fetched=sum(blob.meter.total for blob in blobs),
        requests=sum(blob.requests for blob in blobs),
        rate_bytes_per_s=sum(blob.meter.rate(now) for blob in blobs),
        verified_blobs=sum(blob.verified for blob in blobs),
        stalled_since=stalled[0] if stalled else None,
        stalled_by=stalled[1] if stalled else None,
        failed_by=failure.to_fault() if failure else None,
        totals=totals,
    )


FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


def complaint(error: OSError | None) -> WeightlessError:
    """What to say of a cache that takes nothing. None: quota or floor are reached and everything is in use."""
    if error is None or error.errno in FULL:
        return NoSpace(
            "the cache is full and everything in it is in use; files stay readable, but nothing is fetched ahead",
            fix="raise the quota, or free space on the cache's disk",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CacheFailed(
            "no more files can be opened; those of further blobs stay readable, but nothing of them is kept",
            fix="raise the limit of open files (RLIMIT_NOFILE): a blob that is being filled takes four",
        )
    return CacheFailed(
        f"the cache's disk takes nothing: {error.strerror}; files stay readable, but nothing is kept or fetched ahead",
        fix="look at the disk and its file system (dmesg); it goes on by itself when the disk can be written",
    )
