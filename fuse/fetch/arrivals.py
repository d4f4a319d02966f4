"""What lanes bring: the block becomes present, and whoever waits for it is told.

Nothing blocks while the engine's lock is held, no message is sent under it. Thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from fuse.artifact.chunks import ChunkDigests
from fuse.cache.index import COMPLETE, block_length
from fuse.fetch import protocol, tally
from fuse.fetch.blobs import BlobState
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.loans import Loans
from fuse.fetch.mounts import Outbox, Port, deliver
from fuse.fetch.runs import Priority, Run
from fuse.fetch.shelf import Shelf
from fuse.fetch.tally import Tally
from fuse.fetch.trouble import end_trouble

_COUNTED: Final = {
    Priority.DEMAND: tally.DEMAND,
    Priority.READAHEAD: tally.READAHEAD,
    Priority.BACKGROUND: tally.BACKGROUND,
}


class Arrivals:
    def __init__(self, dispatch: Dispatcher, shelf: Shelf, loans: Loans, counts: Tally) -> None:
        self._lock: Final = dispatch.lock
        self._dispatch = dispatch
        self._queue = dispatch.queue
        self._shelf = shelf
        self._loans = loans
        self._tally = counts
        self.fetched_bytes = 0
        self.requests = 0

    def count_request(self, blob: BlobState) -> None:
        with self._lock:
            blob.requests += 1
            self.requests += 1

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
        with self._lock:
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
                if fetched:
                    self._dispatch.arrived_locked(run, block, now)
                    blob.meter.add(length, now)
                    self.fetched_bytes += length
                    self._tally.add(_COUNTED[run.priority], length)
                else:
                    self._queue.arrived(run, block)
                if block == blob.hashed_blocks:
                    self._shelf.on_hashable(blob)
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
            self._loans.lend_cached(port, number, block)

    def lend(self, run: Run[BlobState], block: int, content: memoryview, chunks: ChunkDigests | None = None) -> None:
        """Gives a block that could not be cached to those who wait for it.

        Only a run for readers has done its work with that; what is fetched ahead has to be cached, so it is wished again.
        """
        blob = run.blob
        outbox: Outbox = []
        with self._lock:
            if blob.chunks is not chunks and not blob.indivisible:
                return
            if run.priority is Priority.DEMAND:
                self._dispatch.arrived_locked(run, block, time.monotonic())
            blob.meter.add(len(content), time.monotonic())
            self.fetched_bytes += len(content)
            self._tally.add(_COUNTED[run.priority], len(content))
            waiters = blob.waiters.pop(block, {})
            self._came_locked(blob, outbox)
        deliver(outbox)
        for port, number in waiters:
            self._loans.lend(port, number, block, content)

    def _came_locked(self, blob: BlobState, outbox: Outbox) -> None:
        """Bytes of the blob came from its registry."""
        self._queue.shares.worked(blob.registry)
        if blob.trouble_since is not None:
            end_trouble(blob, outbox, healed=True)
