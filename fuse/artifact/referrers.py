"""Referrers: manifests that say of another one "this is about you" (OCI distribution-spec 1.1, "Listing Referrers"), here those
that carry a chunk index.

Reads and writes the JSON documents: the index's own manifest, a list of referrers, and the list that stands in for it under a
tag where a registry cannot list them ("Referrers Tag Schema"). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fuse.artifact.chunks import MAX_INDEX_BYTES
from fuse.artifact.digest import Digest
from fuse.artifact.formats import EMPTY
from fuse.artifact.manifest import MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest, parse
from fuse.errors import InvalidArtifact, NotAModel

ARTIFACT_TYPE: Final = "application/vnd.weightless.chunk-index.v1"
LAYER_TYPE: Final = "application/vnd.weightless.chunk-index.v1.digests"
EMPTY_CONTENT: Final = b"{}"
MOST_CANDIDATES: Final = 4
"""So many indexes of one manifest are looked at before it counts as having none."""


def tag_of(subject: Digest) -> str:
    """The tag under which the referrers of `subject` are listed where there is no API for it."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def manifest_of(subject: dict[str, Any], content: bytes) -> bytes:
    """The manifest of the chunk index `content` about `subject` (a descriptor). The same for the same input, byte by byte."""
    empty = {"mediaType": EMPTY, "digest": str(Digest.of(EMPTY_CONTENT)), "size": len(EMPTY_CONTENT)}
    layer = {"mediaType": LAYER_TYPE, "digest": str(Digest.of(content)), "size": len(content)}
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": empty,
            "layers": [layer],
            "subject": subject,
        }
    )


def descriptor(media_type: str, content: bytes, **more: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)} | more


def index_blob(content: bytes, media_type: str, digest: Digest, subject: Digest, expected_bytes: int) -> Descriptor:
    """The blob that holds the chunk index, as its manifest says. Raises InvalidArtifact if it is none about `subject`."""
    found = parse(content, content_type=media_type, digest=digest)
    if not isinstance(found, Manifest) or found.kind != ARTIFACT_TYPE:
        raise InvalidArtifact("not the manifest of a chunk index", where=f"manifest {digest}")
    if found.subject is None or found.subject.digest != subject:
        raise InvalidArtifact("a chunk index about another manifest", where=f"manifest {digest}")
    if len(found.layers) != 1 or found.layers[0].media_type != LAYER_TYPE:
        raise InvalidArtifact("a chunk index that is not one layer", where=f"manifest {digest}")
    layer = found.layers[0]
    if layer.size != expected_bytes or layer.size > MAX_INDEX_BYTES:
        raise InvalidArtifact(
            f"a chunk index of {layer.size} bytes, where the layers need {expected_bytes}", where=f"manifest {digest}"
        )
    return layer


def candidates(listing: bytes, media_type: str) -> list[Descriptor]:
    """The chunk indexes in a list of referrers, in an order that does not depend on the registry. Raises InvalidArtifact."""
    try:
        found = parse(listing, content_type=media_type, digest=Digest.of(listing))
    except NotAModel as error:
        raise InvalidArtifact(error.what, where="the list of referrers") from error
    if not isinstance(found, Index):
        raise InvalidArtifact("not a list of referrers", where="the list of referrers")
    ours = {entry.digest: entry for entry in found.manifests if entry.artifact_type == ARTIFACT_TYPE}
    return sorted(
        (entry for entry in ours.values() if entry.size <= MAX_MANIFEST_BYTES), key=lambda entry: str(entry.digest)
    )


def listed(listing: bytes) -> Sequence[dict[str, Any]]:
    """The descriptors of a list, with all that they say. Raises InvalidArtifact."""
    return _entries(_document(listing))


def with_entry(listing: bytes | None, entry: dict[str, Any]) -> bytes | None:
    """The list with `entry` in it, all else as it was; None when it is there already. Raises InvalidArtifact."""
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []} if listing is None else _document(listing)
    entries = _entries(document)
    if any(other.get("digest") == entry["digest"] for other in entries):
        return None
    return msgspec.json.encode(document | {"manifests": [*entries, entry]})


def _document(listing: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(listing, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArtifact(f"not a list of referrers: {error}") from None


def _entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("manifests", [])
    if document.get("mediaType", OCI_INDEX) != OCI_INDEX or not isinstance(entries, list):
        raise InvalidArtifact("what has the tag of the list of referrers is none")
    if not all(isinstance(entry, dict) for entry in entries):
        raise InvalidArtifact("the list of referrers holds something else than descriptors")
    return entries
