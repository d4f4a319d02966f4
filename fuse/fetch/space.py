"""Room on the cache's disk: reserved before a run, made by evicting, and the memory of there being none.

Thread-safe; never called with the engine's lock held, as it looks at the disk. Counts what is written between two looks, so that
many runs that start together do not promise the same room to all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from fuse.cache.quota import Limits, shortage, victims
from fuse.cache.store import CacheStore
from fuse.fetch import tally as names
from fuse.fetch.tally import CacheRoom, Tally

_log = structlog.get_logger(__name__)


class Space:
    def __init__(
        self, store: CacheStore, limits: Limits, pinned: Callable[[], frozenset[str]], tally: Tally | None = None
    ) -> None:
        """`pinned`: the names (`str(BlobKey)`) that must stay; asked while `lock` is held."""
        self._tally = tally or Tally()
        self._store = store
        self._limits = limits
        self._pinned = pinned
        self.lock: Final = threading.Lock()
        """Held while blobs are opened, removed or evicted, so that none is evicted while it is being opened."""
        self._used_bytes = store.used_bytes()
        self._reserved_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def room(self) -> CacheRoom | None:
        """For whoever is to be told; None when the disk cannot be asked."""
        try:
            disk = self._store.disk()
        except OSError:
            return None
        return CacheRoom(
            used_bytes=self._used_bytes,
            quota_bytes=self._limits.quota_bytes,
            disk_bytes=disk.total_bytes,
            disk_free_bytes=disk.free_bytes,
        )

    def reserve(self, wanted_bytes: int, *, least: int) -> int:
        """Takes room for `wanted_bytes`, evicting what nobody uses if need be.

        Returns what was taken: less when there is less, but at least `least`, else 0.
        """
        with self.lock:
            lacking = self._lacking(wanted_bytes)
            if lacking and self._evict(lacking):
                lacking = self._lacking(wanted_bytes)
            granted = wanted_bytes - lacking
            if granted < min(least, wanted_bytes):
                return 0
            self._reserved_bytes += granted
            return granted

    def has_free(self, wanted_bytes: int) -> bool:
        """Whether there is so much room now, without evicting anything."""
        with self.lock:
            return not self._lacking(wanted_bytes)

    def take_free(self, wanted_bytes: int) -> bool:
        """As `reserve`, for all or nothing and without evicting anything; whether it was taken."""
        with self.lock:
            if self._lacking(wanted_bytes):
                return False
            self._reserved_bytes += wanted_bytes
            return True

    def settle(self, reserved_bytes: int, written_bytes: int) -> None:
        """Ends a reservation: so much of it was really written."""
        with self.lock:
            self._reserved_bytes -= reserved_bytes
            self._used_bytes += written_bytes

    def make_room(self, wanted_bytes: int) -> bool:
        """The disk has just refused a write: evicts at least so much, whatever the arithmetic says. False: nothing to evict."""
        with self.lock:
            return self._evict(max(wanted_bytes, self._lacking(wanted_bytes)))

    def recount(self) -> None:
        """Looks at the disk anew, after blobs were removed in another way than by eviction."""
        with self.lock:
            self._used_bytes = self._store.used_bytes()

    def _lacking(self, wanted_bytes: int) -> int:
        disk = self._store.disk()
        wanted = wanted_bytes + self._reserved_bytes
        return shortage(self._limits, disk, used_bytes=self._used_bytes, wanted_bytes=wanted)

    def _evict(self, shortage_bytes: int) -> bool:
        try:
            candidates = self._store.candidates(self._pinned())
        except OSError as error:
            _log.warning("cache_not_listed", error=str(error))
            return False
        # What is written through delayed allocation shows up late in the files' own numbers: the larger count is right.
        chosen = victims(candidates, shortage_bytes)
        for candidate in chosen:
            self._store.evict(candidate)
            self._tally.add(names.EVICTED)
            self._tally.add(names.EVICTED_BYTES, candidate.disk_bytes)
            _log.info("blob_evicted", blob=candidate.name, disk_bytes=candidate.disk_bytes)
        if chosen:
            gone = {candidate.name for candidate in chosen}
            self._used_bytes = sum(candidate.disk_bytes for candidate in candidates if candidate.name not in gone)
        return bool(chosen)
