"""Who uses blobs: mounts, and the ports through which their sessions (or the fetcher itself) ask for blocks.

A `Port` is an owner of wishes; its `sink` takes the engine's answers. Plain state under the engine's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from fuse import wire
from fuse.artifact.chunks import ChunkDigests
from fuse.errors import Fault, WeightlessError
from fuse.fetch import protocol
from fuse.fetch.blobs import BlobState, Grant

_log = structlog.get_logger(__name__)


class Sink(Protocol):
    """Takes messages for one session. Never blocks and never raises: called by the threads that move the bytes."""

    def send(self, message: protocol.ToWorker, fds: Sequence[int] = ()) -> None:
        """Takes over the descriptors."""
        ...

    def takes_loan(self) -> bool:
        """Whether one more block in memory may be sent: false while the reader has not taken those that were."""
        ...

    def come_back(self) -> None:
        """A loan was not sent: the sink lets `Loans.resume` be called once the reader has taken what it was sent."""
        ...


class Mount:
    def __init__(self, name: str, blobs: Sequence[BlobState], *, uses: bool = True) -> None:
        self.name: Final = name
        self.uses: Final = uses
        """Whether it makes its blobs recently used; a check of the cache does not."""
        self.blobs: Final = tuple(blobs)
        self.distinct: Final = frozenset(blobs)
        self.grants: dict[str, Grant] = {}
        self.ports: set[Port] = set()
        self.stalled: dict[BlobState, tuple[float, Fault]] = {}
        """Blobs from which nothing comes, since when (Unix time) and why."""
        self.chunks: dict[BlobState, ChunkDigests] = {}
        """What the artifact's own chunk index says of its blobs."""
        self.chunks_key = ""
        """Under which that index is remembered (`fuse.fetch.chunkindex`): it is forgotten when it turns out to be wrong."""
        self.authentic = False
        """Whether that index is known to be the registry's own word."""
        self.refused: dict[BlobState, WeightlessError] = {}
        """Blobs that this mount's own chunk index contradicts, while others read them without it."""

    def __repr__(self) -> str:
        return f"<Mount {self.name}>"


class Port:
    def __init__(self, mount: Mount, sink: Sink) -> None:
        self.mount: Final = mount
        self.sink: Final = sink
        self.lent: set[int] = set()
        """Blobs (by number) for which the reader has no files: every block of them is lent."""
        self.deferred: set[tuple[int, int]] = set()
        """Blocks (blob by number) that it is to be lent when it has taken others."""
        self.closed = False


Outbox = list[tuple[Port, protocol.ToWorker]]
"""Messages to send once the lock is released."""


def deliver(outbox: Outbox) -> None:
    for port, message in outbox:
        port.sink.send(message)


def send_loan(port: Port, number: int, block: int, content: memoryview) -> bool:
    """Gives the port a block's bytes in memory. False when it must wait: for its reader, or for memory."""
    if not port.sink.takes_loan():
        return False
    try:
        fd = wire.sealed_memfd("block", content)
    except OSError as error:
        _log.warning("block_not_lent", mount=port.mount.name, error=str(error))
        return False
    port.sink.send(protocol.Loan(blob=number, block=block), (fd,))
    return True
