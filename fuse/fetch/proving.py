"""Blobs whose chunks an index proves: which of it is a mount's, and what becomes of an index that contradicts the registry.

Functions on the engine's state, called with its lock held; messages go into an outbox that is delivered afterwards. The proving
itself is the lanes' (`fuse.fetch.transfer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from fuse.artifact.chunks import CHUNK_BYTES, ChunkDigests
from fuse.artifact.digest import Digest
from fuse.cache.writer import BlobWriter
from fuse.errors import WeightlessError
from fuse.fetch import protocol
from fuse.fetch.blobs import BlobState
from fuse.fetch.mounts import Mount, Outbox

CHUNK_INDEXES: Final = "chunks"
"""The kind of objects that remembered chunk indexes are."""
_TRIES_AT_ORIGIN: Final = 2
"""A wrong chunk from the registry itself is asked for once more: a bit may have been lost on the way."""

_log = structlog.get_logger(__name__)


def of_mount(mount: Mount, chunks: Mapping[Digest, ChunkDigests]) -> dict[BlobState, ChunkDigests]:
    """What an index says of the mount's blobs: nothing where the size is another. Without the lock."""
    return {
        blob: found
        for blob in mount.distinct
        if (found := chunks.get(blob.digest)) is not None and found.size == blob.size
    }


def written(writer: BlobWriter) -> frozenset[int]:
    """The chunks of which the data file has something, for `BlobState.use_chunks`. Without the lock: it asks the disk."""
    writer.keep_marks()
    return writer.written(CHUNK_BYTES)


def ask_origin_again(blob: BlobState) -> bool:
    """The registry itself gave wrong bytes: whether it is asked once more."""
    blob.wrong_at_origin += 1
    return blob.chunks is not None and blob.wrong_at_origin < _TRIES_AT_ORIGIN


def proven_for(mount: Mount, blob: BlobState) -> bool:
    """Whether all that is present of the blob, or is lent, has been proven by the mount's own index, which is authentic."""
    return mount.authentic and blob.chunks is not None and mount.chunks.get(blob) == blob.chunks


def give_up(blob: BlobState, error: WeightlessError, outbox: Outbox) -> bool:
    """A chunk index and the registry contradict each other. Whether some mounts of the blob did not bring that index.

    Whoever may push an artifact may push a lie about it: that must harm nobody else. So those who brought the index get no
    byte of the blob any more, and the others go on as if there were none.
    """
    accusers = [mount for mount in blob.mounts if mount.chunks.get(blob) == blob.chunks is not None]
    if len(accusers) == len(blob.mounts):
        return False
    for mount in accusers:
        mount.refused[blob] = error
        for number in (number for number, other in enumerate(mount.blobs) if other is blob):
            outbox.extend((port, protocol.Quarantined(blob=number, fault=error.to_fault())) for port in mount.ports)
    for block, waiters in list(blob.waiters.items()):
        blob.waiters[block] = {waiter: None for waiter in waiters if waiter[0].mount not in accusers}
    blob.awaiting_whole = {waiter: None for waiter in blob.awaiting_whole if waiter[0].mount not in accusers}
    blob.chunks = None
    blob.unproven.clear()
    blob.refusals.clear()
    blob.wrong_at_origin = 0
    _log.error("chunk_index_given_up", digest=str(blob.digest), mounts=[mount.name for mount in accusers])
    return True


def remembered(blob: BlobState) -> set[str]:
    """Under which keys the indexes that were brought for the blob are remembered."""
    return {mount.chunks_key for mount in blob.mounts if mount.chunks_key and blob in mount.chunks}
