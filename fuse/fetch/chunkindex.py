"""The chunk index of a manifest, as its registry has it (`fuse.fetch.referred`). Thread-safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fuse.artifact import chunks
from fuse.artifact.chunks import ChunkDigests
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Manifest
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import CHUNK_INDEX
from fuse.cache.objects import ObjectStore
from fuse.errors import InvalidArtifact
from fuse.fetch.proving import CHUNK_INDEXES
from fuse.fetch.referred import Answer, Referrers, Remembered, key_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An index that was found."""

    chunks: Mapping[Digest, ChunkDigests]
    authentic: bool
    """It came over a connection that proves whose word it is."""
    key: str
    """Under which it is remembered as an object."""


class ChunkIndexes:
    def __init__(self, objects: ObjectStore, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time."""
        self._remembered = Remembered(CHUNK_INDEXES, objects, clock=clock)

    def known(self, reference: Reference, digest: Digest) -> Known | None:
        """The index of the manifest that is remembered from this repository; asks nobody."""
        key = key_of(reference, digest)
        answer = self._remembered.get(key)
        if answer is None:
            return None
        try:
            found = chunks.decode(answer.content)
        except InvalidArtifact:
            return None  # of another version of this program
        return Known(chunks=found, authentic=answer.authentic, key=key)

    def is_due(self, reference: Reference, digest: Digest, *, again: bool = False) -> bool:
        """Whether the registry is to be asked. `again`: also if there was none a moment ago."""
        return self._remembered.is_due(key_of(reference, digest), again=again)

    def look_up(self, found: Referrers, reference: Reference, manifest: Manifest) -> None:
        """Asks the registry, and remembers what it says. Blocks; never raises."""
        key = key_of(reference, manifest.digest)
        self._remembered.ask(key, reference, lambda: _first(found, manifest))


def _first(found: Referrers, manifest: Manifest) -> Answer | None:
    expected = chunks.encoded_bytes(chunks.indexed(manifest.layers))
    if expected > chunks.MAX_INDEX_BYTES:
        return None

    def check(content: bytes) -> None:
        if not chunks.agrees(chunks.decode(content), manifest.layers):
            raise InvalidArtifact("it lists other layers than the manifest")

    return found.first(CHUNK_INDEX, fits=lambda size: size == expected, check=check)
