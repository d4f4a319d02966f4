"""Sums that only grow, of counters that start anew with each process.

A worker counts its reads, a fetcher its bytes, each from zero. The ledger adds what each has counted since it was asked last, so
that a restart takes nothing away. Safe for threads; knows nothing of processes but that they are told apart.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields

from fuse.fetch.protocol import FetcherTotals, MountProgress
from fuse.fetch.tally import CacheRoom
from fuse.spec import Report


@dataclass(slots=True)
class Sums:
    reads: int = 0
    at_once: int = 0
    bytes_read: int = 0
    waited_s: float = 0.0
    bytes_fetched: int = 0
    requests: int = 0
    restarts: int = 0

    def add(self, other: Sums) -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def beyond(self, earlier: Sums) -> Sums:
        """What is more than in `earlier`; nothing where it is less: answers of one process may overtake each other."""
        grown = Sums()
        for item in fields(self):
            setattr(grown, item.name, max(0, getattr(self, item.name) - getattr(earlier, item.name)))
        return grown


@dataclass(slots=True)
class _Account:
    sums: Sums = field(default_factory=Sums)
    seen: dict[str, tuple[object, Sums]] = field(default_factory=dict)
    """By what counts: which process said something last, and what."""

    def take(self, counter: str, process: object, said: Sums) -> Sums:
        """Adds what is new of `said`, and returns it."""
        last, before = self.seen.get(counter, (None, Sums()))
        if last != process:
            before = Sums()
        grown = said.beyond(before)
        before.add(grown)
        self.seen[counter] = (process, before)
        self.sums.add(grown)
        return grown


class Ledger:
    """Of one holder: its mounts, and all of them together, those that have ended included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mounts: dict[str, _Account] = {}
        self._all = _Account()
        self._counts: dict[str, int] = {}
        self._counted: tuple[object, dict[str, int]] = None, {}
        self.cache: CacheRoom | None = None
        """As the fetcher said last."""

    def worker_said(self, mount_id: str, worker: object, report: Report) -> None:
        """`worker` and `fetcher` below: whatever is equal for the same process, and for no other."""
        said = Sums(reads=report.reads, at_once=report.at_once, bytes_read=report.bytes_read, waited_s=report.waited_s)
        with self._lock:
            self._all.sums.add(self._account(mount_id).take("worker", worker, said))

    def fetcher_said(self, mount_id: str, fetcher: object, progress: MountProgress) -> None:
        said = Sums(bytes_fetched=progress.bytes_fetched, requests=progress.requests)
        totals = progress.totals
        with self._lock:
            grown = self._account(mount_id).take("fetcher", fetcher, said)
            if totals is None:
                self._all.sums.add(grown)  # an older fetcher: what mounts share counts for each
            else:
                self._take_totals(fetcher, totals)

    def fetcher_counted(self, fetcher: object, totals: FetcherTotals) -> None:
        """What it has done for all of its users."""
        with self._lock:
            self._take_totals(fetcher, totals)

    def _take_totals(self, fetcher: object, totals: FetcherTotals) -> None:
        said = Sums(bytes_fetched=totals.bytes_fetched, requests=totals.requests)
        self._all.take("fetcher", fetcher, said)
        last, before = self._counted
        if last != fetcher:
            before = {}
        for name, count in totals.counts.items():
            grown = max(0, count - before.get(name, 0))
            self._counts[name] = self._counts.get(name, 0) + grown
        # Answers of one process may overtake each other.
        merged = {name: max(count, before.get(name, 0)) for name, count in totals.counts.items()}
        self._counted = fetcher, before | merged
        self.cache = totals.cache

    def restarted(self, mount_id: str, count: int) -> None:
        """How often the mount's worker was replaced, by this holder."""
        with self._lock:
            self._all.sums.add(self._account(mount_id).take("restarts", self, Sums(restarts=count)))

    def of(self, mount_id: str) -> Sums:
        with self._lock:
            return self._copy(self._account(mount_id).sums)

    def all(self) -> Sums:
        with self._lock:
            return self._copy(self._all.sums)

    def counts(self) -> dict[str, int]:
        """By the names of `fuse.fetch.tally`."""
        with self._lock:
            return dict(self._counts)

    def forget(self, mount_id: str) -> None:
        """The mount has ended; what it counted stays in the sum of all."""
        with self._lock:
            self._mounts.pop(mount_id, None)

    def _account(self, mount_id: str) -> _Account:
        return self._mounts.setdefault(mount_id, _Account())

    @staticmethod
    def _copy(sums: Sums) -> Sums:
        copied = Sums()
        copied.add(sums)
        return copied
