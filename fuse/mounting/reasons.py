"""Why a mount is not well: a small vocabulary for alerts, runbooks and people. Pure.

A reason is for good: it is a label of metrics, stands in conditions and logs, and has a section in docs/OPERATIONS.md. To add
one, add a member here, the kinds of error that mean it to `BY_KIND`, and its section there; tests ask for all three.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

State = Literal["healthy", "degraded", "broken"]


class Reason(StrEnum):
    """Which cause an operator would treat differently. On the wire it is text: a newer peer may know more of them."""

    # ---- our own processes ----
    RECOVERING = "recovering"
    WORKER_REPLACED = "worker_replaced"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    FETCHER_DOWN = "fetcher_down"
    FETCHER_CRASH_LOOP = "fetcher_crash_loop"
    FETCHER_WEDGED = "fetcher_wedged"
    KEEPER_DOWN = "keeper_down"
    INTERNAL = "internal"
    # ---- the registry ----
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    REGISTRY_REFUSED = "registry_refused"
    ADDRESS_REFUSED = "address_refused"
    BLOB_MISSING = "blob_missing"
    CORRUPT_BLOB = "corrupt_blob"
    UNVERIFIED = "unverified"
    ARTIFACT_UNREADABLE = "artifact_unreadable"
    # ---- the node ----
    CACHE_FULL = "cache_full"
    CACHE_DISK_FAILING = "cache_disk_failing"
    UNMOUNTED = "unmounted"
    MOUNT_FAILED = "mount_failed"
    CONFIGURATION = "configuration"
    # ---- of another version ----
    UNKNOWN = "unknown"


BY_KIND: Final[dict[str, Reason]] = {
    "internal": Reason.INTERNAL,
    "invalid_reference": Reason.ARTIFACT_UNREADABLE,
    "invalid_request": Reason.INTERNAL,
    "invalid_config": Reason.CONFIGURATION,
    "not_found": Reason.BLOB_MISSING,
    "unauthenticated": Reason.REGISTRY_REFUSED,
    "forbidden": Reason.REGISTRY_REFUSED,
    "address_refused": Reason.ADDRESS_REFUSED,
    "unavailable": Reason.REGISTRY_UNAVAILABLE,
    "not_a_model": Reason.ARTIFACT_UNREADABLE,
    "invalid_artifact": Reason.ARTIFACT_UNREADABLE,
    "corrupt": Reason.CORRUPT_BLOB,
    "unverified": Reason.UNVERIFIED,
    "no_space": Reason.CACHE_FULL,
    "cache_failed": Reason.CACHE_DISK_FAILING,
    # Mounting again met another operation on the same volume, and is tried once more.
    "conflict": Reason.RECOVERING,
    "in_progress": Reason.RECOVERING,
    "cancelled": Reason.RECOVERING,
    "mount_failed": Reason.MOUNT_FAILED,
    "missing": Reason.CONFIGURATION,
}
"""From `WeightlessError.kind`, where a fault of the data path or of mounting again is all that is known."""

_CONSEQUENCE: Final[dict[State, str]] = {
    "healthy": "the volume can be read",
    "degraded": "reads wait and go on by themselves",
    "broken": "some reads fail until this is mended",
}
_AGAIN: Final = "reads fail until it is mounted again, which is tried over and over"
_EXCEPTION: Final[dict[tuple[State, Reason], str]] = {
    ("degraded", Reason.CACHE_FULL): "reads go on, uncached",
    ("degraded", Reason.CACHE_DISK_FAILING): "reads go on, uncached",
    ("degraded", Reason.KEEPER_DOWN): "reads go on, but the mount would not outlive a restart of its holder now",
    ("broken", Reason.RECOVERING): _AGAIN,
    ("broken", Reason.REGISTRY_UNAVAILABLE): _AGAIN,
    ("broken", Reason.UNMOUNTED): _AGAIN,
}
"""Where a reason means something else to a reader than its state does."""


def reason_of(kind: str) -> Reason:
    """The reason that an error's kind stands for; `UNKNOWN` for a kind of a newer version."""
    return BY_KIND.get(kind, Reason.UNKNOWN)


def known(code: str) -> Reason:
    """The member for a text from the wire; `UNKNOWN` for what this version does not know, or a peer did not say."""
    return Reason(code) if code in set(Reason) else Reason.UNKNOWN


def consequence(state: State, code: str) -> str:
    """What it means to who reads the volume."""
    return _EXCEPTION.get((state, known(code)), _CONSEQUENCE[state])
