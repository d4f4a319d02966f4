"""What the engine knows of one blob while some mount holds it. Plain state: every field is guarded by the engine's lock.

Exceptions, all single-writer by construction: the index's entries (a block has one run at a time), and the two
descriptors' files.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

from fuse.artifact.chunks import CHUNK_BYTES, ChunkDigests
from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES, COMPLETE, VERIFIED, block_count
from fuse.cache.keys import BlobKey
from fuse.cache.writer import BlobWriter
from fuse.errors import Corrupt, Fault, WeightlessError

if TYPE_CHECKING:
    from fuse.fetch.mounts import Mount, Port

SMALL_BLOCKS: Final = 4
"""Blobs of so few blocks are fetched whole and compared with their digest before anybody sees a byte."""
CHUNK_BLOCKS: Final = CHUNK_BYTES // BLOCK_BYTES
_RATE_WINDOW_S: Final = 5


class Stream(Protocol):
    """The body of one ranged request; `fuse.registry`'s BlobStream is one."""

    @property
    def start(self) -> int:
        """The blob's offset of the first byte: 0 when the server ignored the range."""
        ...

    @property
    def length(self) -> int:
        """How many bytes come."""
        ...

    @property
    def source(self) -> str:
        """The host, for logs."""
        ...

    @property
    def endpoint(self) -> str:
        """Which configured host was asked, for `Source.open_blob(avoid=…)`."""
        ...

    @property
    def origin(self) -> bool:
        """Whether that is the registry itself, behind which there is nobody else to ask."""
        ...

    def readinto(self, view: memoryview, /) -> int:
        """Some bytes; 0 at the end."""
        ...

    def waiting_bytes(self) -> int:
        """How many have come and were not read yet, at least."""
        ...


class Source(Protocol):
    """Where blobs come from; `fuse.registry.repository.Repository` is one."""

    def open_blob(
        self, digest: Digest, size: int, first: int, length: int, *, lane: object, avoid: Collection[str], urgent: bool
    ) -> AbstractContextManager[Stream]:
        """`urgent`: a reader waits. What is not raises Later (`fuse.registry.health`) where it is to be put off."""
        ...


class WrongBytes(Exception):
    """Bytes came that are not the blob's: `error` for people, and who gave them."""

    def __init__(self, stream: Stream, digest: Digest, what: str) -> None:
        super().__init__(what)
        self.error: Final = Corrupt(
            f"the bytes that {stream.source} sent do not match {what}",
            where=str(digest),
            fix="the registry or a mirror serves wrong content; remove it there, then mount again",
        )
        self.endpoint: Final = stream.endpoint
        self.origin: Final = stream.origin


class Grant:
    """Somebody's right to fetch a mount's blobs from one repository."""

    def __init__(self, name: str, source: Source, traceparent: str = "") -> None:
        self.name = name
        self.source = source
        self.traceparent = traceparent
        """Of the publish that brought it; empty where nobody traces."""
        self.revoked = False


class Meter:
    """Bytes per second over the last few seconds."""

    __slots__ = ("_bytes", "_second", "total")

    def __init__(self) -> None:
        self._bytes = [0] * (_RATE_WINDOW_S + 1)
        self._second = 0
        self.total = 0

    def add(self, count: int, now: float) -> None:
        self._roll(int(now))
        self._bytes[int(now) % len(self._bytes)] += count
        self.total += count

    def rate(self, now: float) -> float:
        self._roll(int(now))
        return sum(self._bytes) / (_RATE_WINDOW_S + now % 1)

    def _roll(self, second: int) -> None:
        for passed in range(self._second + 1, min(second, self._second + len(self._bytes)) + 1):
            self._bytes[passed % len(self._bytes)] = 0
        if second > self._second + len(self._bytes):
            self._bytes = [0] * len(self._bytes)
        self._second = max(second, self._second)


class BlobState:
    def __init__(self, key: BlobKey) -> None:
        self.key: Final = key
        self.digest: Final[Digest] = key.digest
        self.registry: Final = key.scope
        self.size: Final = key.size
        self.blocks: Final = block_count(key.size)
        self.indivisible: Final = self.blocks <= SMALL_BLOCKS
        self.references = 0
        """Mounts that contain it, runs and checks under way: it is open, and stays on the disk, while there are any."""
        self.writer: BlobWriter | None = None
        self.uncached = False
        """The disk did not even take its index: every block is lent."""
        self.uncached_by: OSError | None = None
        """What the disk said then."""
        self.mounts: dict[Mount, int] = {}
        self.grants: list[Grant] = []
        self.waiters: dict[int, dict[tuple[Port, int], None]] = {}
        """By block: who is to be told, in the order in which they asked, each once."""
        self.awaiting_whole: dict[tuple[Port, int], None] = {}
        """Who is to be told when the whole is verified."""
        self.bytes_cached = 0
        self.blocks_cached = 0
        self.losses = 0
        """How often a block was found damaged and taken back."""
        self.meter: Final = Meter()
        self.requests = 0
        self.verified = False
        self.hashed_blocks = 0
        """How far the check of the whole has come."""
        self.hash_epoch = 0
        """Changes when a block that was hashed is taken back: the check begins anew."""
        self.rejected: WeightlessError | None = None
        self.chunks: ChunkDigests | None = None
        """In force: with it every block that is present has been proven, by it or by the digest of the whole."""
        self.unproven: set[int] = set()
        """Chunks of which something lies on the disk that nobody has proven yet."""
        self.distrusted: set[str] = set()
        """Mirrors that gave wrong bytes of this blob."""
        self.wrong_at_origin = 0
        """How often in a row the registry itself gave wrong bytes."""
        # Trouble with its sources.
        self.refusals: dict[Grant, WeightlessError] = {}
        self.attempts = 0
        self.tried = 0
        self.trouble_since: float | None = None
        self.stall: Fault | None = None
        self.failure: WeightlessError | None = None
        self.failure_until = 0.0
        self.failures = 0

    def adopt(self, writer: BlobWriter, written: Collection[int] = ()) -> list[tuple[int, int]]:
        """Takes over what is on the disk. `written`, and what is returned: as `use_chunks`."""
        self.writer = writer
        self.uncached = False
        self._count(writer)
        self.verified = bool(writer.index.flags & VERIFIED) and self.complete
        return self.use_chunks(self.chunks, written) if self.chunks is not None else []

    def use_chunks(self, chunks: ChunkDigests, written: Collection[int]) -> list[tuple[int, int]]:
        """From now on presence means proven: what is present without proof is not, until its chunk has been looked at.

        `written`: the chunks of which the data file has something; they are proven from there, not fetched, if they can be.
        Returns the runs (first, count) of blocks that were taken back, for `BlobWriter.record_lost`.
        """
        self.chunks = chunks
        self.unproven.clear()
        writer = self.writer
        if writer is None or self.verified:
            return []
        index = writer.index
        lost: list[tuple[int, int]] = []
        # Not all there are: a blob of which little is there may claim terabytes, and everybody waits for the lock.
        for chunk in sorted({*written, *(block // CHUNK_BLOCKS for block in index.present())}):
            first = chunk * CHUNK_BLOCKS
            blocks = range(first, min(first + CHUNK_BLOCKS, self.blocks))
            foreign = [block for block in blocks if not index.is_marked(block, chunks.mark)]
            if foreign and chunk in written:
                self.unproven.add(chunk)
            for block in foreign:
                if index[block]:
                    index.forget(block)
                    if lost and sum(lost[-1]) == block:
                        lost[-1] = (lost[-1][0], lost[-1][1] + 1)
                    else:
                        lost.append((block, 1))
        if not lost:
            return []
        self.losses += 1
        self._count(writer)
        index.clear_flags(COMPLETE)
        if self.hashed_blocks > lost[0][0]:
            self.hashed_blocks = 0
            self.hash_epoch += 1
        return lost

    def _count(self, writer: BlobWriter) -> None:
        self.bytes_cached = writer.index.bytes_present()
        self.blocks_cached = writer.index.count_present()

    @property
    def complete(self) -> bool:
        return self.blocks_cached == self.blocks and self.writer is not None

    # ---- as the queue sees it ----

    @property
    def grain(self) -> int:
        return CHUNK_BLOCKS if self.chunks is not None else 1

    def first_absent(self, first: int, end: int) -> int:
        if self.writer is None:
            return first
        if self.indivisible:
            return end if self.complete else first
        return self.writer.index.first_absent(first, end)

    def first_present(self, first: int, end: int) -> int:
        if self.writer is None or self.indivisible:
            return end
        return self.writer.index.first_present(first, end)

    # ---- sources ----

    def usable_grants(self) -> list[Grant]:
        return [grant for grant in self.grants if grant not in self.refusals and not grant.revoked]

    def clear_trouble(self) -> None:
        """Something came: earlier failures say nothing any more."""
        self.attempts = self.tried = self.failures = 0
        self.trouble_since = None
        self.failure = None
