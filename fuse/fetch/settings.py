"""What the fetcher is told when it is started."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from fuse.cache.keys import scope_of
from fuse.cache.quota import Limits
from fuse.fetch.limits import RegistryLimits
from fuse.fetch.shares import LaneCounts


class FetcherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uid: int = 65534
    gid: int = 65534
    """What to become when started by root."""
    quota_bytes: int = 0
    """0: as much as the disk has, down to the floor."""
    free_space_fraction: float = 0.05
    """The part of the cache's file system that is left free."""
    connections: int = 8
    """Transfers at the same time, from one registry."""
    urgent_connections: int = 2
    """Of these, how many serve nothing but demand and read-ahead."""
    bytes_per_s: int = 0
    """What all transfers together may read; 0: what the link carries."""
    registries: dict[str, RegistryLimits] = {}
    """Registries, by the host of references, that may take something else."""
    log_level: str = "info"

    def lanes(self, connections: int) -> LaneCounts:
        """How so many connections are divided."""
        urgent = min(self.urgent_connections, max(0, connections - 1))
        return LaneCounts(urgent=urgent, general=max(1, connections) - urgent)

    @property
    def most_connections(self) -> int:
        """To any one registry."""
        return max([self.connections, *(each.connections or 0 for each in self.registries.values())])

    @property
    def own_lanes(self) -> dict[Hashable, LaneCounts]:
        """Of registries that may have another number of connections, named as blobs name them."""
        return {
            scope_of(host): self.lanes(limits.connections)
            for host, limits in self.registries.items()
            if limits.connections is not None
        }

    @property
    def own_bytes_per_s(self) -> dict[Hashable, float]:
        """Of registries that are limited by themselves, named as blobs name them."""
        return {scope_of(host): limits.bytes_per_s for host, limits in self.registries.items() if limits.bytes_per_s}

    @property
    def limits(self) -> Limits:
        return Limits(quota_bytes=self.quota_bytes, free_space_fraction=self.free_space_fraction)
