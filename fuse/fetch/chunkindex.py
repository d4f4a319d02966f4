"""The chunk index of a manifest: asked of the registry itself, once, and remembered with the manifest.

A publish does not depend on it: what goes wrong is logged, and the mount goes without. It is asked for while layers are being
read, and waited for a little; an answer that comes later is for the next mount. That there is none is believed for a while only.

Remembered by repository, as tables are. Thread-safe.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from fuse.artifact import chunks, referrers
from fuse.artifact.chunks import ChunkDigests
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Manifest
from fuse.artifact.offsets import fingerprint
from fuse.artifact.reference import Reference
from fuse.cache.objects import ObjectStore
from fuse.errors import Corrupt, InvalidArtifact, NotAModel, WeightlessError
from fuse.fetch.proving import CHUNK_INDEXES
from fuse.registry.origin import Origin

WAIT_S: Final = 2.0
"""How long a publish that is otherwise done waits for the answer."""
NONE_HOLDS_S: Final = 600
"""How long it is believed that there is no index: one that is pushed later is found then."""
TROUBLE_HOLDS_S: Final = 60
"""The same after a registry that did not answer as it should."""

_HEADER: Final = struct.Struct("<BQ")
_NONE, _AUTHENTIC, _FOUND = range(3)
_log = structlog.get_logger(__name__)


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
        self._objects = objects
        self._clock = clock

    def known(self, reference: Reference, digest: Digest) -> Known | None:
        """The index of the manifest that is remembered from this repository; asks nobody."""
        key = _key(reference, digest)
        content = self._objects.get(CHUNK_INDEXES, key)
        if content is None or len(content) < _HEADER.size or content[0] == _NONE:
            return None
        try:
            found = chunks.decode(content[_HEADER.size :])
        except InvalidArtifact:
            return None  # of another version of this program
        return Known(chunks=found, authentic=content[0] == _AUTHENTIC, key=key)

    def begin(
        self, origin: Callable[[], Origin], reference: Reference, manifest: Manifest, *, again: bool = False
    ) -> threading.Thread | None:
        """Asks for the index of `manifest`, on a thread of its own; None when nothing needs to be asked.

        `again`: also if there was none a moment ago.
        """
        if not chunks.indexed(manifest.layers) or not self._is_due(_key(reference, manifest.digest), again=again):
            return None
        thread = threading.Thread(
            target=self._find, args=(origin, reference, manifest), name="chunk-index", daemon=True
        )
        thread.start()
        return thread

    def _is_due(self, key: str, *, again: bool) -> bool:
        content = self._objects.get(CHUNK_INDEXES, key)
        if content is None or len(content) < _HEADER.size:
            return True
        state, until = _HEADER.unpack_from(content)
        # A clock that was set back must not make the answer last for ever.
        return state == _NONE and (again or not 0 <= until - self._clock() <= NONE_HOLDS_S)

    def _find(self, make: Callable[[], Origin], reference: Reference, manifest: Manifest) -> None:
        state, holds_s, content = _NONE, NONE_HOLDS_S, None
        try:
            origin = make()
            content = look_up(origin, manifest)
            if content is not None:
                state = _AUTHENTIC if origin.authentic else _FOUND
                _log.info("chunk_index_found", reference=str(reference), authentic=origin.authentic, size=len(content))
        except WeightlessError as error:
            holds_s = TROUBLE_HOLDS_S
            _log.warning("chunk_index_not_asked", reference=str(reference), error=str(error))
        except Exception:  # noqa: BLE001  (the edge of a thread)
            holds_s = TROUBLE_HOLDS_S
            _log.exception("chunk_index_broken", reference=str(reference))
        header = _HEADER.pack(state, int(self._clock()) + holds_s)
        self._objects.put(CHUNK_INDEXES, _key(reference, manifest.digest), header + (content or b""))


def look_up(origin: Origin, manifest: Manifest) -> bytes | None:
    """The first valid index of `manifest` at the registry; None when there is none. Raises what the registry raises."""
    expected = chunks.encoded_bytes(chunks.indexed(manifest.layers))
    if expected > chunks.MAX_INDEX_BYTES:
        return None
    listing = origin.referrers(manifest.digest, referrers.ARTIFACT_TYPE)
    if listing is None:
        listing = origin.manifest(referrers.tag_of(manifest.digest))
    if listing is None:
        return None
    for candidate in referrers.candidates(listing.content, listing.media_type)[: referrers.MOST_CANDIDATES]:
        try:
            found = origin.manifest(str(candidate.digest))
            if found is None:
                continue
            blob = referrers.index_blob(found.content, found.media_type, found.digest, manifest.digest, expected)
            content = origin.blob(blob.digest, blob.size)
            if chunks.agrees(chunks.decode(content), manifest.layers):
                return content
            reason = "it lists other layers than the manifest"
        except (Corrupt, InvalidArtifact, NotAModel) as error:
            reason = error.what
        _log.warning("chunk_index_refused", manifest=str(manifest.digest), index=str(candidate.digest), reason=reason)
    return None


def _key(reference: Reference, digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}-{fingerprint(reference.name)}"
