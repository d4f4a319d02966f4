"""What resolving needs of others: a registry, ranged reads of blobs, a place to remember.

The registry's client, the cache and the fetcher implement these; nothing here knows them. All may be called from several
threads at once, and raise only the types of `fuse.errors`.
"""

from __future__ import annotations

from threading import Event
from typing import Protocol

from fuse.artifact.digest import Digest


class ManifestContent(Protocol):
    """A manifest or index as a registry gave it."""

    @property
    def content(self) -> bytes: ...

    @property
    def media_type(self) -> str:
        """The Content-Type of the answer; empty if there was none."""
        ...

    @property
    def digest(self) -> Digest: ...


class ManifestSource(Protocol):
    """One repository of a registry, reached with one publish's own credentials. `cancel` ends its waiting."""

    def manifest(self, target: str, *, expected: Digest | None = None, cancel: Event | None = None) -> ManifestContent:
        """The manifest of a tag, or of a digest that the content must match."""
        ...

    def exists(self, digest: Digest, *, cancel: Event | None = None) -> None:
        """Proves that these credentials may pull this manifest, without pulling it; raises when they may not."""
        ...

    def small_blob(self, digest: Digest, size: int, *, limit: int, cancel: Event | None = None) -> bytes:
        """A whole blob, verified; one larger than `limit` is refused."""
        ...


class BlobReader(Protocol):
    """Ranged reads of the blobs of one artifact, from the cache or through it.

    Several blobs are read at once, but never one blob by two threads.
    """

    def read(self, digest: Digest, size: int, offset: int, length: int, /) -> bytes:
        """Exactly these bytes of the blob, which is `size` bytes long by its descriptor. The range lies within it."""
        ...


class ObjectStore(Protocol):
    """Small things to remember, by kind and key. `get` answers what was put, whole, or None; anything may be forgotten.

    Kinds: `manifests`, `tables`, `offsets`, `chunks`. Keys are at most 200 characters of `a-z`, `0-9` and `-`.
    """

    def get(self, kind: str, key: str, /) -> bytes | None: ...

    def put(self, kind: str, key: str, content: bytes, /) -> None: ...
