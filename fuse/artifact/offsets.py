"""Offset maps of tars, remembered: walking an archive costs requests, and its digest says that it will never change.

Maps are stored by the blob's digest *and* the repository that it was read from. A range is not proven by the digest before the
whole blob is there; so what one repository's server said of a blob must not decide what the users of another one see.
"""

from __future__ import annotations

import hashlib
from threading import Event

import msgspec

from fuse.artifact.digest import Digest
from fuse.artifact.entries import Member
from fuse.artifact.seams import BlobReader, ObjectStore
from fuse.artifact.tar import Window, walk

RULES = 1
"""Raised when the walker comes to see other members in the same bytes."""
KIND = "offsets"


class _Map(msgspec.Struct):
    size: int
    members: tuple[Member, ...]


class OffsetMaps:
    """The offset maps of one repository's blobs. May be shared by threads."""

    def __init__(self, objects: ObjectStore, blobs: BlobReader, repository: str) -> None:
        self._objects = objects
        self._blobs = blobs
        self._repository = repository

    def remembered(self, digest: Digest, size: int) -> tuple[Member, ...] | None:
        known = self._objects.get(KIND, self._key(digest))
        if known is None:
            return None
        try:
            found = msgspec.json.decode(known, type=_Map)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return found.members if found.size == size else None

    def computed(self, digest: Digest, size: int, window: Window, cancel: Event | None = None) -> tuple[Member, ...]:
        """Walks the archive and remembers what is in it."""
        members = walk(window, where=f"layer {digest}", cancel=cancel)
        self._objects.put(KIND, self._key(digest), msgspec.json.encode(_Map(size=size, members=members)))
        return members

    def _key(self, digest: Digest) -> str:
        return f"{digest.algorithm}-{digest.hex}-{fingerprint(self._repository)}-{RULES}"

    def window(self, digest: Digest, size: int) -> Window:
        return Window(self._blobs, digest, size)


def fingerprint(text: str) -> str:
    """A short part of a key."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
