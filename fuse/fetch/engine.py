"""The fetcher's heart: what is wanted, what is there, what is being fetched, and whom to tell.

One lock (the dispatcher's) guards the queue and all state of blobs and mounts; nothing blocks while it is held, no message is
sent under it, no disk is touched. Lanes take runs from the dispatcher and report here, block by block; sessions ask through
ports. Whoever demands a block is told `Ready`, `Loan` or `Failed` after it asked, whatever becomes of the run that was to bring
it. Lock order: `space.lock`, then `lock`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog

from fuse.artifact.chunks import ChunkDigests
from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES, COMPLETE, block_length
from fuse.cache.store import BlobKey, CacheStore
from fuse.errors import Unavailable, WeightlessError
from fuse.fetch import protocol, proving, tally
from fuse.fetch.blobs import BlobState, Grant, Source, WrongBytes
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.mounts import Mount, Outbox, Port, Sink, deliver, send_loan
from fuse.fetch.progress import CacheTrouble, complaint, progress_of
from fuse.fetch.queue import Priority, Run
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.shares import Shares
from fuse.fetch.shelf import Shelf
from fuse.fetch.tally import Tally
from fuse.fetch.trouble import back_off, end_trouble, fail
from fuse.registry.health import Later

PRIORITIES: Final = {
    "demand": Priority.DEMAND,
    "readahead": Priority.READAHEAD,
    "background": Priority.BACKGROUND,
}
_COUNTED: Final = {
    Priority.DEMAND: tally.DEMAND,
    Priority.READAHEAD: tally.READAHEAD,
    Priority.BACKGROUND: tally.BACKGROUND,
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
        self._fetched_bytes = 0
        self._requests = 0
        self._cache_trouble: CacheTrouble | None = None
        """What those who use the cache have been told of it."""

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
            return progress_of(mount, request_id, trouble=self._cache_trouble, totals=totals)

    def totals(self) -> protocol.FetcherTotals:
        return protocol.FetcherTotals(
            bytes_fetched=self._fetched_bytes,
            requests=self._requests,
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
            self._lend_cached(port, number, blob, block)

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

    def count_request(self, blob: BlobState) -> None:
        with self.lock:
            blob.requests += 1
            self._requests += 1

    def publish(self, run: Run[BlobState], block: int, entry: int) -> None:
        """The block's data is written: tells the world."""
        self.publish_all(run, ((block, entry),))

    def publish_all(
        self,
        run: Run[BlobState],
        blocks: Sequence[tuple[int, int]],
        chunks: ChunkDigests | None = None,
        *,
        fetched: bool = True,
    ) -> None:
        """As `publish`, for blocks that follow each other. `chunks`: what has proven them; nothing becomes present without that
        where the blob has come to need it. Not `fetched`: they were on the disk."""
        blob = run.blob
        outbox: Outbox = []
        lend: list[tuple[Port, int, int]] = []
        with self.lock:
            writer = blob.writer
            if writer is None or blob.rejected or (blob.chunks is not chunks and not blob.indivisible):
                return
            now = time.monotonic()
            for block, entry in blocks:
                length = block_length(blob.size, block)
                if not writer.index[block]:
                    blob.blocks_cached += 1
                    blob.bytes_cached += length
                writer.index.publish(block, entry)
                if chunks is not None:
                    writer.index.mark(block, chunks.mark)
                self._queue.arrived(run, block)
                if fetched:
                    blob.meter.add(length, now)
                    self._fetched_bytes += length
                    self.tally.add(_COUNTED[run.priority], length)
                if block == blob.hashed_blocks:
                    self.shelf.on_hashable(blob)
            if blob.blocks_cached == blob.blocks:
                writer.index.set_flags(COMPLETE)
            if fetched:
                blob.wrong_at_origin = 0
                self._came_locked(blob, outbox)
            if blob.waiters:
                for block, _ in blocks:
                    for port, number in blob.waiters.pop(block, ()):
                        if number in port.lent:
                            lend.append((port, number, block))
                        else:
                            outbox.append((port, protocol.Ready(blob=number, first=block, count=1)))
        deliver(outbox)
        for port, number, block in lend:
            self._lend_cached(port, number, blob, block)

    def lend(self, run: Run[BlobState], block: int, content: memoryview, chunks: ChunkDigests | None = None) -> None:
        """Gives a block that could not be cached to those who wait for it.

        Only a run for readers has done its work with that; what is fetched ahead has to be cached, so it is wished again.
        """
        blob = run.blob
        outbox: Outbox = []
        with self.lock:
            if blob.chunks is not chunks and not blob.indivisible:
                return
            if run.priority is Priority.DEMAND:
                self._queue.arrived(run, block)
            blob.meter.add(len(content), time.monotonic())
            self._fetched_bytes += len(content)
            self.tally.add(_COUNTED[run.priority], len(content))
            waiters = blob.waiters.pop(block, {})
            self._came_locked(blob, outbox)
        deliver(outbox)
        for port, number in waiters:
            if not send_loan(port, number, block, content):
                self._defer(port, number, block)

    def _came_locked(self, blob: BlobState, outbox: Outbox) -> None:
        """Bytes of the blob came from its registry."""
        self._queue.shares.worked(blob.registry)
        if blob.trouble_since is not None:
            end_trouble(blob, outbox, healed=True)

    def _lend_cached(self, port: Port, number: int, blob: BlobState, block: int) -> None:
        """Lends a block that is in the cache to a reader that has no files."""
        losses = blob.losses
        writer = blob.writer
        content = memoryview(bytearray(BLOCK_BYTES))
        if writer is not None and writer.block_is_sound(block, content):
            if not send_loan(port, number, block, content[: block_length(blob.size, block)]):
                self._defer(port, number, block)
            return
        self.shelf.forget(blob, block, losses)
        self.want(port, number, block, 1, Priority.DEMAND)

    def _defer(self, port: Port, number: int, block: int) -> None:
        """A reader that does not take what it was lent gets no more: memory is not a queue. It is asked for again later."""
        with self.lock:
            if port.closed:
                return
            port.deferred.add((number, block))
        port.sink.come_back()

    def resume(self, port: Port) -> None:
        """The port's reader has taken what it was lent: what was deferred is wanted again."""
        with self.lock:
            deferred, port.deferred = port.deferred, set()
        for number, block in sorted(deferred):
            self.want(port, number, block, 1, Priority.DEMAND)

    # ---- trouble ----

    def no_room(self, error: OSError | None = None) -> None:
        """The cache takes nothing: from now on only what readers wait for is fetched, and lent.

        `error`: what the disk said; None: it is full and nothing can be evicted.
        """
        why = complaint(error)
        with self.lock:
            told = self._cache_trouble
            outbox: Outbox = []
            if told is None or told[1].what != why.what:
                self._cache_trouble = (told[0] if told else time.time(), why)
                outbox = self._to_unstalled(why)
                _log.warning("cache_takes_nothing", error=str(why))
            self.dispatch.pause_ahead_locked()
        deliver(outbox)

    def room_again(self) -> None:
        """A run that nobody waits for got its room: takes back what `no_room` said."""
        if self._cache_trouble is None:
            return
        with self.lock:
            self._cache_trouble = None
            outbox = self._to_unstalled(None)
        deliver(outbox)

    def _to_unstalled(self, error: WeightlessError | None) -> Outbox:
        message = protocol.Stalled(fault=error.to_fault() if error else None)
        return [(port, message) for mount in self._mounts if not mount.stalled for port in mount.ports]

    def put_off(self, run: Run[BlobState], later: Later) -> None:
        """Nothing has failed, but only what readers wait for is to be asked of this registry for a moment."""
        with self.lock:
            self._queue.shares.put_off(run.blob.registry, time.monotonic() + later.after_s)
        _log.debug("transfer_put_off", digest=str(run.blob.digest), reason=str(later), after_s=later.after_s)

    def temporary(self, run: Run[BlobState], grant: Grant | None, error: WeightlessError, since: float) -> None:
        """A source failed in a way that may heal: the next source at once, or the same again after a while.

        `since`: monotonic time of the last byte, or of the attempt's beginning.
        """
        outbox: Outbox = []
        with self.lock:
            if grant is not None:
                self._queue.shares.failed(run.blob.registry)
            back_off(self._queue, run.blob, grant, error, since, outbox)
        _log.info("transfer_failed", digest=str(run.blob.digest), error=str(error), grant=grant.name if grant else "")
        deliver(outbox)

    def wrong(self, run: Run[BlobState], grant: Grant, found: WrongBytes, since: float) -> None:
        """Bytes came that are not the blob's: from a mirror, which is not asked again, or from the registry itself."""
        blob = run.blob
        error = found.error
        self.tally.add(tally.WRONG)
        if not found.origin:
            with self.lock:
                blob.distrusted.add(found.endpoint)
            _log.warning("mirror_distrusted", mirror=found.endpoint, digest=str(blob.digest), error=error.what)
            return  # what is missing of the run is wished again, and asked of the next host
        with self.lock:
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
        with self.lock:
            blob.refusals[grant] = error
            if not blob.usable_grants() and not (contradicted and proving.give_up(blob, error, outbox)):
                fail(self._queue, blob, error, outbox)
        _log.warning("transfer_refused", digest=str(blob.digest), error=str(error), source=grant.name)
        if contradicted:
            self.shelf.forget_index(blob)
        deliver(outbox)

    def statistics(self) -> tuple[int, int]:
        """Runs in flight, and wishes that wait."""
        with self.lock:
            return sum(1 for _ in self._queue.runs()), sum(1 for _ in self._queue.wishes())
