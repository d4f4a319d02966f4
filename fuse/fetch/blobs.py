"""What the engine knows of one blob while some mount holds it. Plain state: every field is guarded by the engine's lock.

Exceptions, all single-writer by construction: the index's entries (a block has one run at a time), and the two
descriptors' files.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

from fuse.artifact.digest import Digest
from fuse.cache.index import VERIFIED, block_count
from fuse.cache.store import BlobKey, BlobWriter
from fuse.errors import Fault, WeightlessError

if TYPE_CHECKING:
    from fuse.fetch.mounts import Mount, Port

SMALL_BLOCKS: Final = 4
"""Blobs of so few blocks are fetched whole and compared with their digest before anybody sees a byte."""
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

    def readinto(self, view: memoryview, /) -> int:
        """Some bytes; 0 at the end."""
        ...


class Source(Protocol):
    """Where blobs come from; `fuse.registry.repository.Repository` is one."""

    def open_blob(
        self, digest: Digest, size: int, first: int, length: int, *, lane: object
    ) -> AbstractContextManager[Stream]: ...


class Grant:
    """Somebody's right to fetch a mount's blobs from one repository."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.source = source
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
        # Trouble with its sources.
        self.refusals: dict[Grant, WeightlessError] = {}
        self.attempts = 0
        self.tried = 0
        self.trouble_since: float | None = None
        self.stall: Fault | None = None
        self.failure: WeightlessError | None = None
        self.failure_until = 0.0
        self.failures = 0

    def adopt(self, writer: BlobWriter) -> None:
        """Takes over what is on the disk."""
        self.writer = writer
        self.uncached = False
        self.bytes_cached = writer.index.bytes_present()
        self.blocks_cached = writer.index.count_present()
        self.verified = bool(writer.index.flags & VERIFIED) and self.complete

    @property
    def complete(self) -> bool:
        return self.blocks_cached == self.blocks and self.writer is not None

    # ---- as the queue sees it ----

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
