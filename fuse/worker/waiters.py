"""Who waits for which block: the one table between reads and the fetcher's answers.

All changes are synchronous and made on the worker's one thread, so between two awaits the table is whole. A wait that is
given up leaves nothing behind. Knows neither sockets nor files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import trio

from fuse.errors import WeightlessError

Run = tuple[int, int]
"""First block and count."""


class Wait:
    """One read that waits for some blocks of one blob. `done` is set when all have come, or `error` says why they never will."""

    __slots__ = ("blob", "done", "error", "keeps", "loans", "missing")

    def __init__(self, blob: int, missing: set[int], *, keeps: bool = True) -> None:
        self.blob = blob
        self.missing = missing
        self.keeps = keeps
        self.loans: dict[int, bytes] = {}
        """Blocks that came without being cached, if they are kept: they are memory until the last one has come."""
        self.error: WeightlessError | None = None
        self.done = trio.Event()


class WaitTable:
    def __init__(self) -> None:
        self._waits: dict[int, dict[int, list[Wait]]] = {}

    def __len__(self) -> int:
        """The number of blocks that are waited for."""
        return sum(map(len, self._waits.values()))

    def add(self, blob: int, runs: Iterable[Run], *, keeps: bool = True) -> tuple[Wait, list[Run]]:
        """A new wait for the blocks of `runs`, and those runs that nobody has asked the fetcher for yet."""
        blocks = [block for first, count in runs for block in range(first, first + count)]
        wait = Wait(blob, set(blocks), keeps=keeps)
        by_block = self._waits.setdefault(blob, {})
        new = [block for block in blocks if block not in by_block]
        for block in blocks:
            by_block.setdefault(block, []).append(wait)
        return wait, joined(new)

    def arrived(self, blob: int, first: int, count: int) -> None:
        for block, waits in self._taken(blob, first, count):
            for wait in waits:
                _have(wait, block)

    def lent(self, blob: int, block: int, content: bytes) -> None:
        for _, waits in self._taken(blob, block, 1):
            for wait in waits:
                if wait.keeps:
                    wait.loans[block] = content
                _have(wait, block)

    def failed(self, blob: int, first: int, count: int, error: WeightlessError) -> None:
        """`count` 0 means the whole blob."""
        failed = {wait for _, waits in self._taken(blob, first, count) for wait in waits}
        for wait in failed:
            wait.error = error
            self.discard(wait)
            wait.done.set()

    def discard(self, wait: Wait) -> None:
        """Forgets a wait that is over, whichever way it ended; harmless to repeat."""
        by_block = self._waits.get(wait.blob)
        if by_block is None:
            return
        for block in wait.missing:
            waits = by_block.get(block)
            if waits is not None and wait in waits:
                waits.remove(wait)
                if not waits:
                    del by_block[block]
        if not by_block:
            del self._waits[wait.blob]

    def outstanding(self) -> Iterator[tuple[int, Run]]:
        """All that is waited for, as few runs as possible: what a new fetcher is asked."""
        for blob, by_block in self._waits.items():
            for run in joined(sorted(by_block)):
                yield blob, run

    def _taken(self, blob: int, first: int, count: int) -> Iterator[tuple[int, list[Wait]]]:
        by_block = self._waits.get(blob)
        if by_block is None:
            return
        if count == 0:
            blocks = list(by_block)
        elif count <= len(by_block):
            blocks = [block for block in range(first, first + count) if block in by_block]
        else:
            blocks = [block for block in by_block if first <= block < first + count]
        taken = [(block, by_block.pop(block)) for block in blocks]
        if not by_block:
            del self._waits[blob]
        yield from taken


def joined(blocks: Iterable[int]) -> list[Run]:
    """Sorted blocks as runs."""
    runs: list[Run] = []
    for block in blocks:
        if runs and sum(runs[-1]) == block:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs


def _have(wait: Wait, block: int) -> None:
    wait.missing.discard(block)
    if not wait.missing:
        wait.done.set()
