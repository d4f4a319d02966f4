"""How many lanes one registry may take, so that one which hangs or drips holds up nobody else's mounts. Pure arithmetic.

There are a few more lanes than any one registry may have: what is left is for the others. A registry that fails keeps but a
part of its share, down to one lane of each kind, until a byte of it comes: so even several dead ones leave lanes free.
What is ahead of readers can be put off, for a registry whose mirrors fail or want to be left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple


class LaneCounts(NamedTuple):
    """Lanes for readers only, and lanes for all kinds of work."""

    urgent: int
    general: int


_UNLIMITED: Final = LaneCounts(sys.maxsize, sys.maxsize)
SPARE: Final = 1
"""Lanes of each kind that a single registry never takes."""


class Shares:
    def __init__(self, most: LaneCounts = _UNLIMITED, own: Mapping[Hashable, LaneCounts] | None = None) -> None:
        """How many lanes of each kind a registry in good health may have; `own`: those that may have something else."""
        self._most = most
        self._own = own or {}
        self._taken: dict[Hashable, list[int]] = {}
        self._limits: dict[Hashable, LaneCounts] = {}
        """Of registries in trouble."""
        self._put_off: dict[Hashable, float] = {}

    def may_start(self, registry: Hashable, *, urgent_lane: bool) -> bool:
        urgent, general = self._taken.get(registry, (0, 0))
        limits = self._limits.get(registry) or self._in_health(registry)
        return urgent < limits.urgent if urgent_lane else general < limits.general

    def put_off(self, registry: Hashable, until: float) -> None:
        """Only what readers wait for is asked of it before then."""
        self._put_off[registry] = max(until, self._put_off.get(registry, until))

    def end_pauses(self, now: float) -> None:
        for registry in [registry for registry, until in self._put_off.items() if until <= now]:
            del self._put_off[registry]

    def is_put_off(self, registry: Hashable) -> bool:
        return registry in self._put_off

    def due(self) -> float | None:
        """When the first of them may be asked again."""
        return min(self._put_off.values(), default=None)

    def begin(self, registry: Hashable, *, urgent_lane: bool) -> None:
        self._taken.setdefault(registry, [0, 0])[not urgent_lane] += 1

    def end(self, registry: Hashable, *, urgent_lane: bool) -> None:
        taken = self._taken[registry]
        taken[not urgent_lane] -= 1
        if not any(taken):
            del self._taken[registry]

    def failed(self, registry: Hashable) -> None:
        """One of its requests failed: half of what it has now is enough for trying again."""
        urgent, general = self._taken.get(registry, (0, 0))
        old = self._limits.get(registry) or self._in_health(registry)
        self._limits[registry] = LaneCounts(
            urgent=min(old.urgent, max(1, urgent // 2)), general=min(old.general, max(1, general // 2))
        )

    def worked(self, registry: Hashable) -> None:
        """Something of it came."""
        self._limits.pop(registry, None)

    def _in_health(self, registry: Hashable) -> LaneCounts:
        return self._own.get(registry, self._most)
