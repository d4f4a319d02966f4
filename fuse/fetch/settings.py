"""What the fetcher is told when it is started."""

from __future__ import annotations

import msgspec

from fuse.cache.quota import Limits


class FetcherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uid: int = 65534
    gid: int = 65534
    """What to become when started by root."""
    quota_bytes: int = 0
    """0: as much as the disk has, down to the floor."""
    free_space_fraction: float = 0.05
    """The part of the cache's file system that is left free."""
    connections: int = 8
    """Transfers at the same time."""
    urgent_connections: int = 2
    """Of these, how many serve nothing but demand and read-ahead."""
    log_level: str = "info"

    @property
    def limits(self) -> Limits:
        return Limits(quota_bytes=self.quota_bytes, free_space_fraction=self.free_space_fraction)
