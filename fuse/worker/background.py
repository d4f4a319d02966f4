"""What a worker asks of the fetcher that no reader waits for: everything, in the order in which it is worth having.

It is planned lazily, one request after the other, as the session has room for them. What a load turns out to read goes before
the rest, unless an earlier load has taught the order. On trio's thread, but for what says otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

from fuse.artifact.profile import Runs
from fuse.fetch import protocol
from fuse.prefetch.order import Range

MOST_PREFERRED: Final = 64
"""Of the files that a load has come to, so many are put before the rest again when everything is planned anew."""


class Background:
    def __init__(self, plan: Callable[[Runs], Iterator[Range]]) -> None:
        """`plan`: all there is, ordered by what an earlier load has touched."""
        self._plan = plan
        self._order: Runs = ()
        self._on = False
        self._preferred: deque[Range] = deque(maxlen=MOST_PREFERRED)
        self._new: deque[Range] = deque(maxlen=MOST_PREFERRED)
        """Of those, what is to be put before all that the fetcher was asked for."""
        self._rest: Iterator[Range] = iter(())
        self._reordered = False
        """The fetcher is to forget what it was asked for in another order."""

    def turn(self, on: bool) -> None:
        """Whether anything is asked for; what was asked already is not taken back."""
        if on != self._on:
            self._on = on
            self._begin()

    def start_over(self) -> None:
        """For a fetcher that has not been asked for anything."""
        self._reordered = False
        self._begin()

    def reorder(self, order: Runs) -> None:
        """Another load is known, or the first one."""
        if order and order != self._order:
            self._order = order
            self.plan_anew()

    def plan_anew(self) -> None:
        """Everything is asked for once more: the fetcher passes over what is there."""
        self._reordered = True
        self._begin()

    def prefer(self, found: Range) -> bool:
        """A load has come to this; whether that changes anything. From any thread."""
        if not self._on or self._order:
            return False
        self._preferred.append(found)
        self._new.append(found)
        return True

    def next(self) -> protocol.Want | None:
        if self._new and not self._reordered:
            return _want(self._new.popleft(), front=True)
        for found in self._rest:
            anew, self._reordered = self._reordered, False
            return _want(found, anew=anew)
        return None

    def _begin(self) -> None:
        self._new.clear()
        preferred = () if self._order else reversed(tuple(self._preferred))
        self._rest = chain(preferred, self._plan(self._order)) if self._on else iter(())


def _want(found: Range, *, anew: bool = False, front: bool = False) -> protocol.Want:
    return protocol.Want(
        blob=found.blob, first=found.first, count=found.blocks, priority="background", anew=anew, front=front
    )
