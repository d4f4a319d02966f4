"""The fetcher's heart: what is wanted, what is there, what is being fetched, and whom to tell.

One lock (the dispatcher's) guards the queue and all state of blobs and mounts; nothing blocks while it is held, no message is
sent under it, no disk is touched. Sessions ask here, through ports. Lanes take runs from the dispatcher and report, block by
block, to `arrivals`, and what fails to `setbacks`. Whoever demands a block is told `Ready`, `Loan` or `Failed` after it asked,
whatever becomes of the run that was to bring it. Lock order: `space.lock`, then `lock`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog

from fuse.artifact.chunks import ChunkDigests
from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey
from fuse.cache.store import CacheStore
from fuse.fetch import protocol, proving
from fuse.fetch.arrivals import Arrivals
from fuse.fetch.blobs import BlobState, Grant, Source
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.loans import Loans
from fuse.fetch.mounts import Mount, Outbox, Port, Sink, deliver
from fuse.fetch.progress import progress_of
from fuse.fetch.runs import Priority, Run
from fuse.fetch.setbacks import Setbacks
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.shares import Shares
from fuse.fetch.shelf import Shelf
from fuse.fetch.tally import Tally

PRIORITIES: Final = {
    "demand": Priority.DEMAND,
    "readahead": Priority.READAHEAD,
    "background": Priority.BACKGROUND,
}

_log = structlog.get_logger(__name__)


class Engine:
    def __init__(self, store: CacheStore, settings: FetcherSettings) -> None:
        self.settings: Final = settings
        shares = Shares(settings.lanes(settings.connections), settings.own_lanes)
        self.dispatch: Final = Dispatcher(settings.lanes(settings.most_connections).general, shares)
        self.lock: Final = self.dispatch.lock
        self.tally: Final = Tally()
        self.shelf: Final = Shelf(store, settings.limits, self.dispatch, self.tally)
        self._queue = self.dispatch.queue
        self._mounts: set[Mount] = set()
        self.loans: Final = Loans(self.dispatch, self.shelf, self._demand)
        self.arrivals: Final = Arrivals(self.dispatch, self.shelf, self.loans, self.tally)
        self.setbacks: Final = Setbacks(self.dispatch, self.shelf, self._mounts, self.tally)

    # ---- mounts ----

    def attach(self, name: str, keys: Iterable[BlobKey], *, uses: bool = True) -> Mount:
        """A new user of these blobs; they stay on the disk until `detach`. `uses`: it makes them recently used."""
        wanted = list(keys)
        with self.lock:
            blobs = [self.shelf.blob_locked(key) for key in wanted]
            mount = Mount(name, blobs, uses=uses)
            for blob in mount.distinct:
                blob.references += 1
                blob.mounts[mount] = blob.mounts.get(mount, 0) + 1
            self._mounts.add(mount)
        return mount

    def detach(self, mount: Mount) -> None:
        for port in list(mount.ports):
            self.close_port(port)
        for grant in list(mount.grants):
            self.revoke(mount, grant)
        for blob in mount.distinct:
            writer = blob.writer
            if mount.uses and writer is not None:
                writer.touch()
        with self.lock:
            if mount not in self._mounts:
                return
            self._mounts.discard(mount)
            for blob in mount.distinct:
                blob.mounts.pop(mount, None)
                self.shelf.unreference_locked(blob)

    def know_chunks(
        self, mount: Mount, chunks: Mapping[Digest, ChunkDigests], *, authentic: bool, key: str = ""
    ) -> None:
        """The mount's artifact has this chunk index. `authentic`: it is known to be the registry's own word; `key`: under which
        it is remembered.

        A blob is proven by the first index that a mount of it brings, for all of them; it never harms those who did not bring it
        (`permanent`).
        """
        for blob, found in proving.of_mount(mount, chunks).items():
            with self.shelf.space.lock:
                with self.lock:
                    if not blob.references:
                        return  # the mount has gone
                    blob.references += 1
                    writer, new = blob.writer, blob.chunks is None
                lost: Sequence[tuple[int, int]] = ()
                written = proving.written(writer) if writer is not None and new else frozenset()
                with self.lock:
                    mount.chunks[blob] = found
                    mount.authentic, mount.chunks_key = authentic, key
                    if blob.chunks is None and blob.rejected is None:
                        lost = blob.use_chunks(found, written)
                        self.shelf.on_hashable(blob)
                        self.dispatch.kick_locked()
                if writer is not None:
                    writer.record_lost(lost)
                self.shelf.unreference(blob)

    def grant(self, mount: Mount, name: str, source: Source, traceparent: str = "") -> None:
        """Blobs of `mount` may be fetched from `source` from now on; what had failed for want of it is tried again."""
        self.revoke(mount, name)
        grant = Grant(name, source, traceparent)
        with self.lock:
            mount.grants[name] = grant
            for blob in mount.distinct:
                blob.grants.append(grant)
                if blob.rejected is None:
                    blob.failure = None
                    blob.tried = 0
                    self._queue.release(blob)
            self.dispatch.kick_locked()

    def revoke(self, mount: Mount, name: str) -> None:
        with self.lock:
            grant = mount.grants.pop(name, None)
            if grant is None:
                return
            grant.revoked = True
            for blob in mount.distinct:
                if grant in blob.grants:
                    blob.grants.remove(grant)
                blob.refusals.pop(grant, None)
                if not blob.usable_grants():
                    # Who is left was refused while there was somebody better: it is asked again, and has the last word.
                    blob.refusals.clear()

    def open_port(self, mount: Mount, sink: Sink) -> Port:
        port = Port(mount, sink)
        with self.lock:
            mount.ports.add(port)
            stall = next(iter(mount.stalled.values()), None)
        if stall is not None:
            sink.send(protocol.Stalled(fault=stall[1]))
        return port

    def close_port(self, port: Port) -> None:
        """Forgets what the port wished and waits for."""
        with self.lock:
            port.closed = True
            port.mount.ports.discard(port)
            self._queue.drop_owner(port)
            for blob in port.mount.distinct:
                for waiter in [waiter for waiter in blob.awaiting_whole if waiter[0] is port]:
                    del blob.awaiting_whole[waiter]
                for block, waiters in list(blob.waiters.items()):
                    for waiter in [waiter for waiter in waiters if waiter[0] is port]:
                        del waiters[waiter]
                    if not waiters:
                        del blob.waiters[block]
            self.dispatch.kick_locked()

    def progress(self, mount: Mount, request_id: int) -> protocol.MountProgress:
        for blob in mount.distinct:
            self.shelf.prepare(blob, make=False)
        totals = self.totals()
        with self.lock:
            return progress_of(mount, request_id, trouble=self.setbacks.cache_trouble, totals=totals)

    def totals(self) -> protocol.FetcherTotals:
        return protocol.FetcherTotals(
            bytes_fetched=self.arrivals.fetched_bytes,
            requests=self.arrivals.requests,
            counts=self.tally.counts(),
            cache=self.shelf.space.room(),
        )

    # ---- ports ----

    def open(self, port: Port, number: int, *, live: bool = False) -> None:
        """Answers `Opened` with the blob's files, `Opened` without when it cannot be cached, or `Failed`.

        `live`: the index goes on to say what is verified, also of a blob that is now.
        """
        blob = port.mount.blobs[number]
        self.shelf.prepare(blob, make=True)
        fds: tuple[int, ...] = ()
        with self.lock:
            rejected, writer = blob.rejected or port.mount.refused.get(blob), blob.writer
            proven = proving.proven_for(port.mount, blob)
        if rejected is not None:
            port.sink.send(protocol.Failed(blob=number, first=0, count=0, fault=rejected.to_fault()))
            return
        if writer is not None:
            try:
                if live:
                    with self.lock:
                        writer.index.share()
                fds = writer.reader_fds()
            except OSError as error:
                _log.warning("blob_open_failed", digest=str(blob.digest), error=str(error))
        with self.lock:
            if fds:
                port.lent.discard(number)
            else:
                port.lent.add(number)
        port.sink.send(protocol.Opened(blob=number, proven=proven), fds)

    def want(self, port: Port, number: int, first: int, count: int, priority: Priority, *, front: bool = False) -> None:
        """Wishes blocks; a demand is answered for every block of the range. `front`: before its others of this priority."""
        blob = port.mount.blobs[number]
        if not 0 <= first < blob.blocks or count <= 0:
            return
        end = min(first + count, blob.blocks)
        self.shelf.prepare(blob, make=True)
        outbox: Outbox = []
        lend: list[int] = []
        with self.lock:
            if port.closed:
                return
            rejected = blob.rejected or port.mount.refused.get(blob)
            trouble = rejected or (blob.failure if time.monotonic() < blob.failure_until else None)
            if priority is Priority.DEMAND:
                if trouble is not None and (rejected or blob.first_absent(first, end) < end):
                    outbox.append(
                        (port, protocol.Failed(blob=number, first=first, count=end - first, fault=trouble.to_fault()))
                    )
                else:
                    lend = self._await(port, number, blob, first, end, outbox)
            if self._queue.crowded(port):
                raise ValueError("a session wishes more than any reader needs")
            if not rejected and not (trouble and priority is Priority.DEMAND):
                self._queue.want(port, blob, first, end - first, priority, front=front)
                self.dispatch.kick_locked()
        deliver(outbox)
        for block in lend:
            self.loans.lend_cached(port, number, block)

    def _demand(self, port: Port, number: int, block: int) -> None:
        self.want(port, number, block, 1, Priority.DEMAND)

    def forget_wishes(self, port: Port, priority: Priority) -> None:
        """What the port wished at this priority is wished no more; what is in flight comes all the same."""
        with self.lock:
            self._queue.forget(port, priority)

    def want_whole(self, port: Port, number: int) -> None:
        """Wishes all of a blob before what is ahead of readers; answered when it is verified, or will never be."""
        blob = port.mount.blobs[number]
        self.shelf.prepare(blob, make=True)
        outbox: Outbox = []
        with self.lock:
            if port.closed:
                return
            rejected = blob.rejected or port.mount.refused.get(blob)
            trouble = rejected or (blob.failure if time.monotonic() < blob.failure_until else None)
            if blob.verified and not rejected:
                outbox.append((port, protocol.Ready(blob=number, first=0, count=0)))
            elif trouble is not None and (rejected or not blob.complete):
                outbox.append((port, protocol.Failed(blob=number, first=0, count=0, fault=trouble.to_fault())))
            else:
                blob.awaiting_whole[port, number] = None
                self._queue.want(port, blob, 0, blob.blocks, Priority.READAHEAD)
                self.shelf.on_hashable(blob)
                self.dispatch.kick_locked()
        deliver(outbox)

    def _await(self, port: Port, number: int, blob: BlobState, first: int, end: int, outbox: Outbox) -> list[int]:
        """Registers the port for the absent blocks; what is there is answered at once, or returned to be lent."""
        lend: list[int] = []
        while first < end:
            absent = blob.first_absent(first, end)
            if absent > first:
                if number in port.lent:
                    lend.extend(range(first, absent))
                else:
                    outbox.append((port, protocol.Ready(blob=number, first=first, count=absent - first)))
            first = max(absent, blob.first_present(absent, end)) if absent < end else end
            for block in range(absent, first):
                blob.waiters.setdefault(block, {})[port, number] = None
        return lend

    def damaged(self, port: Port, number: int, first: int, count: int) -> None:
        """A reader found blocks that do not match their checksum: those that really do not are forgotten."""
        blob = port.mount.blobs[number]
        if not 0 <= first < blob.blocks:
            return
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for block in range(first, min(first + count, blob.blocks)):
            self.shelf.recheck(blob, block, buffer)

    # ---- lanes ----

    def done(self, run: Run[BlobState]) -> None:
        """The lane has ended the run; what is missing of it goes back into the queue."""
        with self.lock:
            self.dispatch.finish_locked(run)
            self.shelf.unreference_locked(run.blob)

    def must_stop(self, run: Run[BlobState], grant: Grant) -> bool:
        """Whether the lane should leave the run: it was cut, nobody may fetch it any more, or the process ends."""
        return run.next >= run.end or grant.revoked or self.dispatch.closed or run.blob.rejected is not None

    def grant_for(self, blob: BlobState) -> Grant | None:
        """Which source to use now."""
        with self.lock:
            usable = blob.usable_grants()
            return usable[blob.tried % len(usable)] if usable else None

    # ---- for people ----

    def statistics(self) -> tuple[int, int]:
        """Runs in flight, and wishes that wait."""
        with self.lock:
            return sum(1 for _ in self._queue.runs()), sum(1 for _ in self._queue.wishes())
