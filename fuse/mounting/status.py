"""What a holder tells about its mounts: to `weightless status`, to the demo and to NodeGetVolumeStats."""

from __future__ import annotations

from typing import Literal

import msgspec


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`degraded`: reads wait, and will go on by themselves. `broken`: some reads fail, and only a change from outside helps."""

    state: Literal["healthy", "degraded", "broken"] = "healthy"
    reason: str = ""
    since: float = 0.0
    """Unix time; 0 when healthy."""


class MountStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One mount. What its processes do not answer quickly is told as it was last known."""

    id: str
    mountpoint: str
    reference: str
    digest: str
    worker_pid: int | None
    keeper_pid: int | None
    fetcher_pid: int | None
    holder_pid: int
    bytes_cached: int
    bytes_total: int
    bytes_fetched: int = 0
    requests: int = 0
    served_by: Literal["fuse"] = "fuse"
    prefetch: Literal["full", "none"] = "full"
    rate_bytes_per_s: float = 0.0
    reads: int = 0
    bytes_read: int = 0
    waiting: int = 0
    waited_s: float = 0.0
    open_files: int = 0
    condition: Health = Health()
    targets: tuple[str, ...] = ()
    """Where else the file system is bound to, as the mount table tells."""
    grants: tuple[str, ...] = ()
    """Who uses it."""
