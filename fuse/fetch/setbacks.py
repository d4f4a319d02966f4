"""What goes wrong with a transfer, and what follows: the cache takes nothing, a source fails, or gives what is not the blob.

Lanes report here; whether a fault is temporary is the error's own word. Who waits is told of what will not heal, and of what
takes long. No message is sent under the engine's lock. Thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import structlog

from fuse.errors import Unavailable, WeightlessError
from fuse.fetch import protocol, proving, tally
from fuse.fetch.blobs import BlobState, Grant, WrongBytes
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.mounts import Mount, Outbox, deliver
from fuse.fetch.progress import CacheTrouble, complaint
from fuse.fetch.runs import Run
from fuse.fetch.shelf import Shelf
from fuse.fetch.tally import Tally
from fuse.fetch.trouble import back_off, fail
from fuse.registry.health import Later

_log = structlog.get_logger(__name__)


class Setbacks:
    def __init__(self, dispatch: Dispatcher, shelf: Shelf, mounts: Collection[Mount], counts: Tally) -> None:
        """`mounts`: all that there are, read with the lock held."""
        self._lock: Final = dispatch.lock
        self._dispatch = dispatch
        self._queue = dispatch.queue
        self._shelf = shelf
        self._mounts = mounts
        self._tally = counts
        self.cache_trouble: CacheTrouble | None = None
        """What those who use the cache have been told of it."""

    # ---- the cache ----

    def no_room(self, error: OSError | None = None) -> None:
        """The cache takes nothing: from now on only what readers wait for is fetched, and lent.

        `error`: what the disk said; None: it is full and nothing can be evicted.
        """
        why = complaint(error)
        with self._lock:
            told = self.cache_trouble
            outbox: Outbox = []
            if told is None or told[1].what != why.what:
                self.cache_trouble = (told[0] if told else time.time(), why)
                outbox = self._to_unstalled(why)
                _log.warning("cache_takes_nothing", error=str(why))
            self._dispatch.pause_ahead_locked()
        deliver(outbox)

    def room_again(self) -> None:
        """A run that nobody waits for got its room: takes back what `no_room` said."""
        if self.cache_trouble is None:
            return
        with self._lock:
            self.cache_trouble = None
            outbox = self._to_unstalled(None)
        deliver(outbox)

    def _to_unstalled(self, error: WeightlessError | None) -> Outbox:
        message = protocol.Stalled(fault=error.to_fault() if error else None)
        return [(port, message) for mount in self._mounts if not mount.stalled for port in mount.ports]

    # ---- sources ----

    def put_off(self, run: Run[BlobState], later: Later) -> None:
        """Nothing has failed, but only what readers wait for is to be asked of this registry for a moment."""
        with self._lock:
            self._queue.shares.put_off(run.blob.registry, time.monotonic() + later.after_s)
        _log.debug("transfer_put_off", digest=str(run.blob.digest), reason=str(later), after_s=later.after_s)

    def temporary(self, run: Run[BlobState], grant: Grant | None, error: WeightlessError, since: float) -> None:
        """A source failed in a way that may heal: the next source at once, or the same again after a while.

        `since`: monotonic time of the last byte, or of the attempt's beginning.
        """
        outbox: Outbox = []
        with self._lock:
            if grant is not None:
                self._queue.shares.failed(run.blob.registry)
            back_off(self._queue, run.blob, grant, error, since, outbox)
        _log.info("transfer_failed", digest=str(run.blob.digest), error=str(error), grant=grant.name if grant else "")
        deliver(outbox)

    def wrong(self, run: Run[BlobState], grant: Grant, found: WrongBytes, since: float) -> None:
        """Bytes came that are not the blob's: from a mirror, which is not asked again, or from the registry itself."""
        blob = run.blob
        error = found.error
        self._tally.add(tally.WRONG)
        if not found.origin:
            with self._lock:
                blob.distrusted.add(found.endpoint)
            _log.warning("mirror_distrusted", mirror=found.endpoint, digest=str(blob.digest), error=error.what)
            return  # what is missing of the run is wished again, and asked of the next host
        with self._lock:
            again = proving.ask_origin_again(blob)
        if again:
            self.temporary(run, grant, Unavailable(error.what, where=error.where), since)
        else:
            self.permanent(run, grant, error, contradicted=blob.chunks is not None)

    def permanent(
        self, run: Run[BlobState], grant: Grant, error: WeightlessError, *, contradicted: bool = False
    ) -> None:
        """A source will not give the blob. When none is left, those who wait are told so.

        `contradicted`: it gives other bytes than the chunk index promises.
        """
        blob = run.blob
        outbox: Outbox = []
        with self._lock:
            blob.refusals[grant] = error
            if not blob.usable_grants() and not (contradicted and proving.give_up(blob, error, outbox)):
                fail(self._queue, blob, error, outbox)
        _log.warning("transfer_refused", digest=str(blob.digest), error=str(error), source=grant.name)
        if contradicted:
            self._shelf.forget_index(blob)
        deliver(outbox)
