"""What one registry may take of a node: values that a holder hands to the fetcher it starts."""

from __future__ import annotations

import msgspec

LEAST_BYTES_PER_S = 1_000_000
"""A block of 1 MiB in about a second: less would make a reader wait longer for what one background request has drawn."""


class RegistryLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Apart from what is said for all."""

    connections: int | None = None
    """None: as many as any other."""
    bytes_per_s: int = 0
    """0: as many as the node may have."""
