"""Referrers: manifests that say of another one "this is about you" (OCI distribution-spec 1.1, "Listing Referrers"), here those
that carry one document of ours, a chunk index or a profile.

Reads and writes the JSON around it: the document's own manifest, a list of referrers, and the list that stands in for it under a
tag where a registry cannot list them ("Referrers Tag Schema"). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from fuse.artifact.digest import Digest
from fuse.artifact.formats import EMPTY
from fuse.artifact.manifest import MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest, parse
from fuse.errors import InvalidArtifact, NotAModel

EMPTY_CONTENT: Final = b"{}"
MOST_CANDIDATES: Final = 4
"""So many of one kind are looked at before a manifest counts as having none."""
_CREATED: Final = "org.opencontainers.image.created"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a referrer of ours carries."""

    name: str
    """For people."""
    artifact_type: str
    layer_type: str


CHUNK_INDEX: Final = Kind(
    name="chunk index",
    artifact_type="application/vnd.weightless.chunk-index.v1",
    layer_type="application/vnd.weightless.chunk-index.v1.digests",
)
PROFILE: Final = Kind(
    name="profile",
    artifact_type="application/vnd.weightless.profile.v1+json",
    layer_type="application/vnd.weightless.profile.v1+json",
)


def tag_of(subject: Digest) -> str:
    """The tag under which the referrers of `subject` are listed where there is no API for it."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def manifest_of(kind: Kind, subject: dict[str, Any], content: bytes, *, created: int | None = None) -> bytes:
    """The manifest of the document `content` about `subject` (a descriptor). The same for the same input, byte by byte.

    `created`: the document's own time (Unix), where there may be several and the newest counts.
    """
    empty = {"mediaType": EMPTY, "digest": str(Digest.of(EMPTY_CONTENT)), "size": len(EMPTY_CONTENT)}
    layer = {"mediaType": kind.layer_type, "digest": str(Digest.of(content)), "size": len(content)}
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind.artifact_type,
            "config": empty,
            "layers": [layer],
            "subject": subject,
        }
        | _annotations(created)
    )


def entry_of(kind: Kind, manifest: bytes, *, created: int | None = None) -> dict[str, Any]:
    """What a list of referrers says of the `manifest` that `manifest_of` made."""
    return descriptor(OCI_MANIFEST, manifest, artifactType=kind.artifact_type) | _annotations(created)


def _annotations(created: int | None) -> dict[str, Any]:
    if created is None:
        return {}
    return {"annotations": {_CREATED: datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}}


def descriptor(media_type: str, content: bytes, **more: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)} | more


def document_blob(
    kind: Kind, content: bytes, media_type: str, digest: Digest, subject: Digest, *, fits: Callable[[int], bool]
) -> Descriptor:
    """The blob that holds the document, as its manifest says. Raises InvalidArtifact if it is none of `kind` about `subject`, or
    of a size that does not fit."""
    where = f"manifest {digest}"
    found = parse(content, content_type=media_type, digest=digest)
    if not isinstance(found, Manifest) or found.kind != kind.artifact_type:
        raise InvalidArtifact(f"not the manifest of a {kind.name}", where=where)
    if found.subject is None or found.subject.digest != subject:
        raise InvalidArtifact(f"a {kind.name} about another manifest", where=where)
    if len(found.layers) != 1 or found.layers[0].media_type != kind.layer_type:
        raise InvalidArtifact(f"a {kind.name} that is not one layer", where=where)
    if not fits(found.layers[0].size):
        raise InvalidArtifact(f"no {kind.name} of this manifest has {found.layers[0].size} bytes", where=where)
    return found.layers[0]


def candidates(kind: Kind, listing: bytes, media_type: str) -> list[Descriptor]:
    """Those of `kind` in a list of referrers, in an order that does not depend on the registry: the newest first, where they have
    a date. Raises InvalidArtifact."""
    try:
        found = parse(listing, content_type=media_type, digest=Digest.of(listing))
    except NotAModel as error:
        raise InvalidArtifact(error.what, where="the list of referrers") from error
    if not isinstance(found, Index):
        raise InvalidArtifact("not a list of referrers", where="the list of referrers")
    ours = {entry.digest: entry for entry in found.manifests if entry.artifact_type == kind.artifact_type}
    ordered = sorted(
        (entry for entry in ours.values() if entry.size <= MAX_MANIFEST_BYTES), key=lambda entry: str(entry.digest)
    )
    # Dates as we write them are in the order of their letters.
    return sorted(ordered, key=lambda entry: entry.annotations.get(_CREATED, ""), reverse=True)


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
