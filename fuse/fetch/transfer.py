"""The lanes: threads that carry one run at a time from a registry into the cache.

For each block of 1 MiB: read from the socket into the lane's own buffer, one checksum, one write, one 8-byte store in the index.
Where a chunk index proves the blob, for each chunk of 4 MiB: all of it is read and compared before any of it is written.
Nothing is kept between runs but the buffer and, in the registry's client, the connection. What fails is told to the engine, which
decides; a lane never sleeps over a failure.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

import structlog

from fuse import tracing
from fuse.artifact.chunks import CHUNK_BYTES, ChunkDigests
from fuse.cache.index import BLOCK_BYTES, block_length, entry_of
from fuse.errors import InvalidArtifact, Unavailable, WeightlessError
from fuse.fetch import tally
from fuse.fetch.bandwidth import Bandwidth
from fuse.fetch.blobs import CHUNK_BLOCKS, BlobState, Grant, Stream, WrongBytes
from fuse.fetch.courtesy import BEHIND_BYTES
from fuse.fetch.engine import Engine
from fuse.fetch.progress import FULL
from fuse.fetch.runs import Priority, Run
from fuse.fetch.shares import SPARE
from fuse.registry.health import Later

_REST_S: Final = 0.1
"""A background run goes on after so long, even if readers still wait: it slows down, it does not stop."""

_log = structlog.get_logger(__name__)


class Lanes:
    """All transfer threads of the process."""

    def __init__(self, engine: Engine) -> None:
        """As many as the engine's settings let one registry have; a few more are there for the others, should it hang."""
        settings = engine.settings
        urgent, general = settings.lanes(settings.most_connections)
        urgent += SPARE if urgent else 0
        general += SPARE
        self.bandwidth: Final = Bandwidth(settings.bytes_per_s, settings.own_bytes_per_s)
        self._lanes = [
            _Lane(engine, self.bandwidth, number, urgent_only=number < urgent) for number in range(urgent + general)
        ]

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def join(self, timeout_s: float) -> None:
        """Waits for the lanes to end, after `Dispatcher.close`; those in a blocking read are left behind."""
        self.bandwidth.close()
        deadline = time.monotonic() + timeout_s
        for lane in self._lanes:
            lane.join(max(0.0, deadline - time.monotonic()))


class _Lane(threading.Thread):
    def __init__(self, engine: Engine, bandwidth: Bandwidth, number: int, *, urgent_only: bool) -> None:
        super().__init__(name=f"lane-{number}", daemon=True)
        self._engine = engine
        self._bandwidth = bandwidth
        self._urgent_only = urgent_only
        self._buffer = memoryview(bytearray(BLOCK_BYTES))
        self._last_byte = 0.0
        self._was_away = False
        """Bytes of the stream may have gathered while the lane did not read."""

    def run(self) -> None:
        while (run := self._engine.dispatch.take(urgent_only=self._urgent_only)) is not None:
            try:
                self._carry(run)
            finally:
                self._engine.done(run)

    def _carry(self, run: Run[BlobState]) -> None:
        engine, blob = self._engine, run.blob
        grant = engine.grant_for(blob)
        self._last_byte = time.monotonic()
        if grant is None:
            engine.setbacks.temporary(run, None, _no_grant(), self._last_byte)
            return
        reserved: int | None = None
        cached_before = 0
        try:
            engine.shelf.prepare(blob, make=True)
            chunks = blob.chunks
            if chunks is not None and not self._begin_chunks(run, grant, chunks):
                return
            reserved = self._reserve(run)
            if reserved is None:
                return
            cached_before = blob.bytes_cached
            first = run.next
            with tracing.sparse_span("weightless.transfer", _described(run), links=(grant.traceparent,)) as span:
                self._request(run, grant, chunks, lend=not reserved)
                span.set("weightless.blocks", run.next - first)
        except Later as later:
            engine.setbacks.put_off(run, later)
        except WrongBytes as error:
            engine.setbacks.wrong(run, grant, error, self._last_byte)
        except WeightlessError as error:
            if error.temporary:
                engine.setbacks.temporary(run, grant, error, self._last_byte)
            else:
                engine.setbacks.permanent(run, grant, error)
        except Exception as error:  # noqa: BLE001  (the edge of a thread)
            # A disk that cannot be asked, or a mistake of ours: neither may end the lane, nor leave a reader without a retry.
            _log.exception("transfer_broken", digest=str(blob.digest))
            engine.setbacks.temporary(run, grant, Unavailable(f"internal error: {error}"), self._last_byte)
        finally:
            if reserved:
                engine.shelf.space.settle(reserved, min(reserved, max(0, blob.bytes_cached - cached_before)))

    def _reserve(self, run: Run[BlobState]) -> int | None:
        """Room for the run: its bytes; 0 when there is none but a reader waits (its blocks are lent); None: leave it."""
        engine, blob = self._engine, run.blob
        first, end = (0, blob.blocks) if blob.indivisible else (run.next, run.end)
        wanted = min(end * BLOCK_BYTES, blob.size) - first * BLOCK_BYTES
        least = wanted if blob.indivisible else blob.grain * BLOCK_BYTES
        failure = blob.uncached_by if blob.writer is None else None
        granted = 0
        if blob.writer is not None:
            try:
                granted = engine.shelf.space.reserve(wanted, least=least)
            except OSError as error:  # a disk that cannot even be asked
                failure = error
        if granted >= wanted:
            if run.priority is not Priority.DEMAND:
                engine.setbacks.room_again()
            return granted
        if granted:
            engine.dispatch.shorten(run, granted // (blob.grain * BLOCK_BYTES) * blob.grain)
            return granted
        engine.setbacks.no_room(failure)
        return 0 if run.priority is Priority.DEMAND else None

    def _request(self, run: Run[BlobState], grant: Grant, chunks: ChunkDigests | None, *, lend: bool) -> None:
        engine, blob = self._engine, run.blob
        first, end = run.next, run.end
        if first >= end:
            return
        offset = first * BLOCK_BYTES
        length = min(end * BLOCK_BYTES, blob.size) - offset
        began = time.monotonic()
        with self._opened(run, grant, offset, length) as stream:
            self._was_away = True  # for the first block, which has just been asked for
            run.reading = True
            if blob.indivisible:
                self._receive_small(run, stream, lend=lend)
                return
            if stream.start != offset or stream.length > length:
                self._check_whole(blob, stream)
                if not engine.dispatch.widen(run):
                    return  # another lane streams the whole; what this run was for waits for it
            elif (unit := BLOCK_BYTES * (CHUNK_BLOCKS if chunks else 1)) <= stream.length < length:
                # The server gives less at a time.
                engine.dispatch.shorten(run, stream.length // unit * (unit // BLOCK_BYTES))
            if chunks is not None:
                self._receive_chunks(run, grant, stream, chunks, lend=lend)
            else:
                self._receive(run, grant, stream, lend=lend)
        fetched = run.next - first
        if fetched >= 8 and not run.whole:
            engine.dispatch.note_speed((time.monotonic() - began) / fetched)

    def _opened(self, run: Run[BlobState], grant: Grant, offset: int, length: int) -> AbstractContextManager[Stream]:
        blob, asked = run.blob, True
        try:
            return grant.source.open_blob(
                blob.digest,
                blob.size,
                offset,
                length,
                lane=self,
                avoid=frozenset(blob.distrusted),
                urgent=run.urgent or bool(blob.awaiting_whole),  # a strict reader waits for all of it
            )
        except Later:
            asked = False
            raise
        finally:
            if asked:
                self._engine.arrivals.count_request(blob)

    @staticmethod
    def _check_whole(blob: BlobState, stream: Stream) -> None:
        if stream.start != 0:
            raise Unavailable(f"{stream.source} sent another range than was asked for", where=str(blob.digest))
        if stream.length != blob.size:
            raise InvalidArtifact(
                f"the registry's blob has {stream.length} bytes, the manifest promises {blob.size}",
                where=str(blob.digest),
                fix="push the artifact again",
            )

    def _receive(self, run: Run[BlobState], grant: Grant, stream: Stream, *, lend: bool) -> None:
        engine, blob = self._engine, run.blob
        writer = blob.writer
        while not engine.must_stop(run, grant) and blob.chunks is None:
            self._share_link(run, stream)
            if engine.must_stop(run, grant):
                break  # it was left meanwhile
            block = run.next
            content = self._buffer[: block_length(blob.size, block)]
            self._fill(run, content, stream)
            if run.whole and (_is_there(blob, block) or engine.dispatch.fetched_elsewhere(run, block)):
                engine.dispatch.skip(run, block)
                continue
            if not lend and writer is not None:
                entry = entry_of(content)
                try:
                    writer.write(block, content)
                except OSError as error:
                    lend = not self._write_again(blob, block, content, error)
                if not lend:
                    writer.record(block, entry)
                    engine.arrivals.publish(run, block, entry)
                    continue
            engine.arrivals.lend(run, block, content)
            if run.priority is not Priority.DEMAND:
                return  # nobody waits for the rest

    # ---- proven chunk by chunk ----

    def _begin_chunks(self, run: Run[BlobState], grant: Grant, chunks: ChunkDigests) -> bool:
        """What the run begins with and lies on the disk unproven is proven from there. Whether there is something to fetch."""
        engine, blob = self._engine, run.blob
        if run.next % CHUNK_BLOCKS or (run.end % CHUNK_BLOCKS and run.end != blob.blocks):
            return False  # it was begun before the index was known: it is wished again, from a chunk's beginning
        while not self._has_ended(run, grant, chunks) and engine.shelf.take_unproven(blob, run.next // CHUNK_BLOCKS):
            if not self._prove_cached(run, chunks):
                break
        ahead = [chunk * CHUNK_BLOCKS for chunk in blob.unproven.copy()]
        following = min((first for first in ahead if run.next < first < run.end), default=None)
        if following is not None:
            engine.dispatch.shorten(run, following - run.next)
        return not self._has_ended(run, grant, chunks)

    def _prove_cached(self, run: Run[BlobState], chunks: ChunkDigests) -> bool:
        """Publishes the run's next chunk if what is on the disk is what the index says."""
        blob, first, content = run.blob, run.next, self._chunk_of(run)
        writer = blob.writer
        if writer is None:
            return False
        try:
            got = os.preadv(writer.fd, [content], first * BLOCK_BYTES)
        except OSError as error:
            _log.warning("chunk_unreadable", digest=str(blob.digest), chunk=first // CHUNK_BLOCKS, error=str(error))
            return False
        if got != len(content) or not chunks.matches(first // CHUNK_BLOCKS, hashlib.sha256(content).digest()):
            return False
        entries = [(block, entry_of(part)) for block, part in _parts(first, content)]
        for block, entry in entries:
            writer.record_proven(block, entry, chunks.mark)
        self._engine.arrivals.publish_all(run, entries, chunks, fetched=False)
        return True

    def _receive_chunks(
        self, run: Run[BlobState], grant: Grant, stream: Stream, chunks: ChunkDigests, *, lend: bool
    ) -> None:
        engine, blob = self._engine, run.blob
        while not self._has_ended(run, grant, chunks):
            self._share_link(run, stream)
            if self._has_ended(run, grant, chunks):
                break  # it was left meanwhile
            first, content = run.next, self._chunk_of(run)
            proof = hashlib.sha256()
            for _, part in _parts(first, content):
                self._fill(run, part, stream)
                proof.update(part)  # while it is still in the processor's cache
            if not chunks.matches(first // CHUNK_BLOCKS, proof.digest()):
                raise WrongBytes(stream, blob.digest, f"chunk {first // CHUNK_BLOCKS} of the chunk index")
            if run.whole and all(
                _is_there(blob, block) or engine.dispatch.fetched_elsewhere(run, block)
                for block, _ in _parts(first, content)
            ):
                for block, _ in _parts(first, content):
                    engine.dispatch.skip(run, block)
                continue
            lend = lend or not self._keep_chunk(run, content, chunks)
            if lend:
                for block, part in _parts(first, content):
                    engine.arrivals.lend(run, block, part, chunks)
                if run.priority is not Priority.DEMAND:
                    return  # nobody waits for the rest

    def _keep_chunk(self, run: Run[BlobState], content: memoryview, chunks: ChunkDigests) -> bool:
        """Writes and publishes what is missing of the run's next chunk. False when the disk takes it not."""
        blob = run.blob
        writer = blob.writer
        if writer is None:
            return False
        entries: list[tuple[int, int]] = []
        for block, part in _parts(run.next, content):
            entries.append((block, entry_of(part)))
            if _is_there(blob, block):
                continue
            try:
                writer.write(block, part)
            except OSError as error:
                if not self._write_again(blob, block, part, error):
                    return False
        for block, entry in entries:
            writer.record_proven(block, entry, chunks.mark)
        self._engine.arrivals.publish_all(run, entries, chunks)
        return True

    def _has_ended(self, run: Run[BlobState], grant: Grant, chunks: ChunkDigests) -> bool:
        return self._engine.must_stop(run, grant) or run.blob.chunks is not chunks

    def _chunk_of(self, run: Run[BlobState]) -> memoryview:
        """Room for the run's next chunk."""
        if len(self._buffer) < CHUNK_BYTES:
            self._buffer = memoryview(bytearray(CHUNK_BYTES))
        return self._buffer[: min(CHUNK_BYTES, run.blob.size - run.next * BLOCK_BYTES)]

    # ---- small parts ----

    def _share_link(self, run: Run[BlobState], stream: Stream) -> None:
        """Before each block: leaves the link to readers where it is theirs, and notes who waits, this lane or the bytes."""
        if run.priority is Priority.BACKGROUND and self._engine.dispatch.give_way(run, _REST_S):
            self._was_away = True
        waiting_bytes = stream.waiting_bytes()
        if self._was_away:
            self._was_away = waiting_bytes >= BEHIND_BYTES  # what had gathered meanwhile says nothing
            run.waiting_bytes = None
        else:
            run.waiting_bytes = waiting_bytes

    def _write_again(self, blob: BlobState, block: int, content: memoryview, error: OSError) -> bool:
        """The disk refused a block: once more, after evicting something. False: it cannot be cached."""
        _log.warning("block_not_written", digest=str(blob.digest), block=block, error=str(error))
        if error.errno in FULL and self._engine.shelf.space.make_room(BLOCK_BYTES) and blob.writer is not None:
            try:
                blob.writer.write(block, content)
            except OSError as again:
                error = again
            else:
                return True
        self._engine.setbacks.no_room(error)
        return False

    def _receive_small(self, run: Run[BlobState], stream: Stream, *, lend: bool) -> None:
        """A small blob is compared with its digest before anybody sees a byte of it."""
        engine, blob = self._engine, run.blob
        if stream.length != blob.size or stream.start != 0:
            self._check_whole(blob, stream)
        whole = memoryview(bytearray(blob.size))
        self._fill(run, whole, stream)
        if not blob.digest.matches(bytes(whole)):
            raise WrongBytes(stream, blob.digest, "the digest")
        parts = [whole[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] for block in range(blob.blocks)]
        if not lend and blob.writer is not None:
            for block, content in enumerate(parts):
                try:
                    blob.writer.write(block, content)
                except OSError as error:
                    lend = not self._write_again(blob, block, content, error)
                    if lend:
                        break
            else:
                entries = [(block, entry_of(content)) for block, content in enumerate(parts)]
                for block, entry in entries:
                    blob.writer.record(block, entry)
                engine.arrivals.publish_all(run, entries)
                return
        for block, content in enumerate(parts):
            engine.arrivals.lend(run, block, content)

    def _fill(self, run: Run[BlobState], content: memoryview, stream: Stream) -> None:
        got = 0
        length = len(content)
        self._bandwidth.draw(run, length)
        while got < length:
            count = stream.readinto(content[got:] if got else content)
            if not count:
                raise Unavailable(f"{stream.source} ended its answer early")
            got += count
        self._engine.tally.add(tally.FROM_REGISTRY if stream.origin else tally.FROM_MIRROR, length)
        self._last_byte = time.monotonic()


def _described(run: Run[BlobState]) -> dict[str, tracing.Value]:
    if not tracing.on():
        return {}
    return {
        "weightless.blob.digest": str(run.blob.digest),
        "weightless.blob.first_block": run.next,
        "weightless.priority": run.priority.name.lower(),
    }


def _no_grant() -> Unavailable:
    return Unavailable("no credentials for this registry are held at the moment", fix="it goes on when they are given")


def _parts(first: int, content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The blocks that `content` consists of, from block `first` on."""
    for at in range(0, len(content), BLOCK_BYTES):
        yield first + at // BLOCK_BYTES, content[at : at + BLOCK_BYTES]


def _is_there(blob: BlobState, block: int) -> bool:
    return blob.writer is not None and blob.writer.index[block] != 0
