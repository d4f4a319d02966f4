"""Blobs of which no run begins before some time, and the wishes that wait for that. Bookkeeping, under the queue's lock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Generic

from fuse.fetch.runs import B, Wish


class Holds(Generic[B]):
    def __init__(self) -> None:
        self._held: dict[B, tuple[float, list[Wish[B]]]] = {}

    def __contains__(self, blob: B) -> bool:
        return blob in self._held

    def hold(self, blob: B, until: float) -> None:
        """From now on, or for longer or shorter than was said before."""
        _, wishes = self._held.get(blob, (0.0, []))
        self._held[blob] = (until, wishes)

    def add(self, wish: Wish[B]) -> None:
        """The wish is for a blob that is held."""
        self._held[wish.blob][1].append(wish)

    def release(self, blob: B) -> list[Wish[B]]:
        """What has waited for the blob."""
        _, wishes = self._held.pop(blob, (0.0, []))
        return wishes

    def keep(self, kept: Callable[[Wish[B]], bool]) -> None:
        """Forgets all other wishes."""
        for blob, (until, wishes) in self._held.items():
            self._held[blob] = (until, [wish for wish in wishes if kept(wish)])

    def until(self, blob: B) -> float | None:
        held = self._held.get(blob)
        return held[0] if held else None

    def over(self, now: float) -> list[B]:
        return [blob for blob, (until, _) in self._held.items() if until <= now]

    def due(self) -> float | None:
        """When the next hold ends that something waits for."""
        return min((until for until, wishes in self._held.values() if wishes), default=None)

    def wishes(self) -> Iterator[Wish[B]]:
        return itertools.chain.from_iterable(wishes for _, wishes in self._held.values())
