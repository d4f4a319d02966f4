"""What a mount's state says to people: how much is there, how fast it comes, what is wrong.

Reads the engine's state; called with its lock held.
"""

from __future__ import annotations

import time

from fuse.errors import NoSpace
from fuse.fetch import protocol
from fuse.fetch.mounts import Mount


def progress_of(
    mount: Mount, request_id: int, *, full: NoSpace | None, totals: protocol.FetcherTotals
) -> protocol.MountProgress:
    """`full`: the complaint, while the cache has no room for what is fetched ahead."""
    now = time.monotonic()
    blobs = mount.distinct
    stalled = min(mount.stalled.values(), key=lambda stall: stall[0], default=None)
    if stalled is None and full is not None and not all(blob.complete for blob in blobs):
        stalled = (time.time(), full.to_fault())
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


def full_cache() -> NoSpace:
    return NoSpace(
        "the cache is full and everything in it is in use; files stay readable, but nothing is fetched ahead",
        fix="raise the quota, or free space on the cache's disk",
    )
