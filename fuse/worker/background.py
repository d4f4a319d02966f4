"""What a worker asks of the fetcher that no reader waits for: everything, in the order in which it is worth having.

It is planned lazily, one request after the other, as the session has room for them. On trio's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fuse.artifact.profile import Runs
from fuse.fetch import protocol
from fuse.prefetch.order import Range


class Background:
    def __init__(self, plan: Callable[[Runs], Iterator[Range]]) -> None:
        """`plan`: all there is, ordered by what an earlier load has touched."""
        self._plan = plan
        self._order: Runs = ()
        self._on = False
        self._rest: Iterator[Range] = iter(())
        self._reordered = False
        """The fetcher is to forget what it was asked for in another order."""

    def turn(self, on: bool) -> None:
        """Whether anything is asked for; what was asked already is not taken back."""
        if on != self._on:
            self._on = on
            self._rest = self._plan(self._order) if on else iter(())

    def start_over(self) -> None:
        """For a fetcher that has not been asked for anything."""
        self._reordered = False
        self._rest = self._plan(self._order) if self._on else iter(())

    def reorder(self, order: Runs) -> None:
        """Another load is known, or the first one. Everything is asked for once more: the fetcher passes over what is there."""
        if order and order != self._order:
            self._order = order
            self._reordered = True
            self._rest = self._plan(order) if self._on else iter(())

    def next(self) -> protocol.Want | None:
        for blob, first, count in self._rest:
            anew, self._reordered = self._reordered, False
            return protocol.Want(blob=blob, first=first, count=count, priority="background", anew=anew)
        return None
