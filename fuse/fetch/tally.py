"""What the fetcher has counted since it started, for metrics: names of a fixed vocabulary, never of a registry or an artifact.

`Tally` is thread-safe, with a lock of its own that nothing else is done under.
"""

from __future__ import annotations

import threading
from typing import Final

import msgspec

FROM_REGISTRY: Final = "bytes_from_registry"
FROM_MIRROR: Final = "bytes_from_mirror"
DEMAND: Final = "bytes_demand"
READAHEAD: Final = "bytes_readahead"
BACKGROUND: Final = "bytes_background"
VERIFIED: Final = "blobs_verified"
REJECTED: Final = "blobs_rejected"
DAMAGED: Final = "blocks_damaged"
WRONG: Final = "wrong_answers"
EVICTED: Final = "blobs_evicted"
EVICTED_BYTES: Final = "bytes_evicted"
FAILURE: Final = "failures"
"""Followed by `.registry` or `.mirror`, and the kind of the error: `failures.mirror.unavailable`."""
NAMES: Final = (
    FROM_REGISTRY, FROM_MIRROR, DEMAND, READAHEAD, BACKGROUND, VERIFIED, REJECTED, DAMAGED, WRONG, EVICTED, EVICTED_BYTES,
)  # fmt: skip


class CacheRoom(msgspec.Struct, frozen=True, kw_only=True):
    """Now, on the cache's disk."""

    used_bytes: int
    quota_bytes: int
    """0: none."""
    disk_bytes: int
    disk_free_bytes: int


class Tally:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
