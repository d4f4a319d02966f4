"""What a holder tells about its mounts: to `weightless status`, to the demo and to NodeGetVolumeStats."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from fuse.fetch.tally import CacheRoom
from fuse.mounting.reasons import State, consequence, known


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`degraded`: reads wait, or a safety net is missing; it heals by itself. `broken`: some reads fail."""

    state: State = "healthy"
    reason: str = ""
    """In words, for people."""
    since: float = 0.0
    """Unix time; 0 when healthy, or not known."""
    proven_at: float = 0.0
    """Unix time of the oldest proof on which the offline policy let a user of the mount in; 0 when the registry let all in."""
    reason_code: str = ""
    """A `fuse.mounting.reasons.Reason`, or one of a newer version; empty when healthy, and from an older one."""

    @property
    def cause(self) -> tuple[State, str]:
        """What makes it another condition: words may change while the same thing is wrong."""
        return self.state, known(self.reason_code) if self.state != "healthy" else ""

    @property
    def since_iso(self) -> str:
        """UTC, to the second: "2026-11-25T12:00:03Z"; empty when there is no such time."""
        return _iso(self.since)

    def sentence(self) -> str:
        """State, since when, reason, words and what it means to a reader, for a volume's condition."""
        offline = (
            f"; let in by the offline policy, as the registry last did {_iso(self.proven_at)}" if self.proven_at else ""
        )
        if self.state == "healthy":
            return consequence(self.state, "") + offline
        since = f" since {self.since_iso}" if self.since_iso else ""
        words = f"{self.reason}; " if self.reason else ""
        meaning = consequence(self.state, self.reason_code)
        return f"{self.state}{since}: {known(self.reason_code)}: {words}{meaning}{offline}"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment > 0 else ""


class Restarts(msgspec.Struct, frozen=True, kw_only=True):
    """How often a process had to be replaced since its holder started, and why the last time."""

    count: int = 0
    reason: str = ""
    last_words: str = ""
    """The last lines that it wrote to standard error."""
    at: float = 0.0
    """Unix time of its last end."""


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
    served_by: str = "fuse"
    """Or "native": by the kernel alone, from the cache; then there is no worker, and nothing counts its reads."""
    bytes_copied: int = 0
    """What copies of parts of its blobs, by which the kernel shows them, take in the cache beside those."""
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
    worker_restarts: Restarts = Restarts()
    """Of this mount."""
    fetcher_restarts: Restarts = Restarts()
    """Of this holder, as those of the keeper."""
    keeper_restarts: Restarts = Restarts()


class HolderTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What all mounts of one holder, also those that have ended, add up to since it started. Counters never go back, whatever
    process restarts; what a process did since it was asked last is lost when it is killed."""

    reads: int = 0
    bytes_read: int = 0
    waited_s: float = 0.0
    bytes_fetched: int = 0
    """By the fetcher, for whomever; a blob that several mounts share counts once."""
    requests: int = 0
    worker_restarts: int = 0
    fetcher_restarts: int = 0
    keeper_restarts: int = 0
    keeper_up: bool = True
    """Also when none is wanted."""
    fetcher_up: bool = True
    changes: dict[tuple[str, str], int] = {}
    """How often mounts came into a state, by state and reason code."""
    reads_at_once: int = 0
    """Reads whose bytes were all there."""
    counts: dict[str, int] = {}
    """Of the fetcher, by the names of `fuse.fetch.tally`."""
    cache: CacheRoom | None = None
    """As the fetcher said last."""
