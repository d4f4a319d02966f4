"""Blocks that a reader has no file for: they are given to it in memory, as many at a time as it takes.

Called without the engine's lock. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fuse.cache.index import BLOCK_BYTES, block_length
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.mounts import Port, send_loan
from fuse.fetch.shelf import Shelf


class Loans:
    def __init__(self, dispatch: Dispatcher, shelf: Shelf, demand: Callable[[Port, int, int], None]) -> None:
        """`demand`: asks for a block (port, blob by number, block) once more."""
        self._lock: Final = dispatch.lock
        self._shelf = shelf
        self._demand = demand

    def lend(self, port: Port, number: int, block: int, content: memoryview) -> None:
        """Gives a block's bytes to a reader that waits for them, or has it asked for again later."""
        if not send_loan(port, number, block, content):
            self._defer(port, number, block)

    def lend_cached(self, port: Port, number: int, block: int) -> None:
        """Lends a block that is in the cache to a reader that has no files."""
        blob = port.mount.blobs[number]
        losses = blob.losses
        writer = blob.writer
        content = memoryview(bytearray(BLOCK_BYTES))
        if writer is not None and writer.block_is_sound(block, content):
            self.lend(port, number, block, content[: block_length(blob.size, block)])
            return
        self._shelf.forget(blob, block, losses)
        self._demand(port, number, block)

    def _defer(self, port: Port, number: int, block: int) -> None:
        """A reader that does not take what it was lent gets no more: memory is not a queue. It is asked for again later."""
        with self._lock:
            if port.closed:
                return
            port.deferred.add((number, block))
        port.sink.come_back()

    def resume(self, port: Port) -> None:
        """The port's reader has taken what it was lent: what was deferred is wanted again."""
        with self._lock:
            deferred, port.deferred = port.deferred, set()
        for number, block in sorted(deferred):
            self._demand(port, number, block)
