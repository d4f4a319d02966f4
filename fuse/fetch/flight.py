"""The runs in flight: which of them brings a block, and how many there are of what kind. Bookkeeping, under the queue's lock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Generic

from fuse.fetch.runs import B, Priority, Run


class Flight(Generic[B]):
    def __init__(self) -> None:
        self._runs: dict[B, list[Run[B]]] = {}
        self.demand = 0
        """How many runs there are for readers, when they began."""
        self.background = 0

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[Run[B]]:
        return itertools.chain.from_iterable(self._runs.values())

    def of(self, blob: B) -> Sequence[Run[B]]:
        return self._runs.get(blob, ())

    def begin(self, run: Run[B]) -> None:
        self._runs.setdefault(run.blob, []).append(run)
        self._count(run, 1)

    def end(self, run: Run[B]) -> None:
        runs = self._runs[run.blob]
        runs.remove(run)
        if not runs:
            del self._runs[run.blob]
        self._count(run, -1)

    def _count(self, run: Run[B], change: int) -> None:
        if run.priority is Priority.DEMAND:
            self.demand += change
        elif run.priority is Priority.BACKGROUND:
            self.background += change

    def covering(self, blob: B, block: int, *, besides: Run[B] | None = None) -> Run[B] | None:
        """The run (other than `besides`) that is fetching the block."""
        for run in self.of(blob):
            if run is not besides and run.covers(block):
                return run
        return None

    def touching(self, blob: B, first: int) -> Run[B] | None:
        """A run that is fetching something of the unit at `first`: of one that was begun before the blob had its grain."""
        for block in range(first, min(first + blob.grain, blob.blocks)):
            if (run := self.covering(blob, block)) is not None:
                return run
        return None
