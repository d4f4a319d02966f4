"""Pushing a document about a manifest: blobs, its own manifest, and where the registry keeps no list of referrers, the list.

Every step may be repeated: what is there already is left as it is.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from fuse.artifact import referrers
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse
from fuse.artifact.referrers import Kind
from fuse.errors import Conflict, InvalidArtifact, NotFound
from fuse.registry.origin import Origin

_TRIES: Final = 5


def subject_of(origin: Origin, digest: Digest) -> tuple[Manifest, dict[str, Any]]:
    """The manifest as the registry itself has it, and its descriptor, which a document about it names.

    Raises NotFound, InvalidArtifact for an index, and what a registry raises.
    """
    found = origin.manifest(str(digest))
    if found is None:
        raise NotFound("the registry itself does not have the manifest", where=f"{origin.reference.name}@{digest}")
    manifest = parse(found.content, content_type=found.media_type, digest=digest)
    if not isinstance(manifest, Manifest):
        raise InvalidArtifact("not a manifest", where=f"manifest {digest}")
    media_type = msgspec.json.decode(found.content).get("mediaType") or found.media_type or OCI_MANIFEST
    return manifest, referrers.descriptor(media_type, found.content) | {"digest": str(digest)}


def push(
    origin: Origin, kind: Kind, subject: dict[str, Any], content: bytes, *, created: int | None = None
) -> tuple[Digest, bool]:
    """Pushes the document `content` about `subject` (a descriptor); its manifest's digest, and whether anything had to change.

    `created`: as in `fuse.artifact.referrers.manifest_of`. Raises what a registry raises, Forbidden where pushing is not allowed,
    InvalidArtifact when something else stands where the list of referrers belongs, Conflict when others keep changing that list.
    """
    manifest = referrers.manifest_of(kind, subject, content, created=created)
    digest = Digest.of(manifest)
    known = origin.manifest(str(digest)) is not None
    changed = not known
    if not known:
        origin.push_blob(referrers.EMPTY_CONTENT)
        origin.push_blob(content)
    # Once more also where it is known: only the answer says whether the registry lists it.
    if origin.push_manifest(str(digest), manifest, OCI_MANIFEST):
        return digest, changed
    entry = referrers.entry_of(kind, manifest, created=created)
    return digest, _list(origin, Digest.parse(subject["digest"]), entry) or changed


def _list(origin: Origin, subject: Digest, entry: dict[str, Any]) -> bool:
    """Adds `entry` to the list under the subject's tag; whether it had to.

    A registry without the API has no way to add one entry to a list, so two who push at once overwrite each other. Whoever wrote
    looks again: an entry that was there before, or its own, that has got lost is put back.
    """
    tag = referrers.tag_of(subject)
    before: list[dict[str, Any]] = []
    changed = False
    for _ in range(_TRIES):
        found = origin.manifest(tag)
        content = found.content if found is not None else None
        present = {str(other.get("digest")) for other in referrers.listed(content)} if content is not None else set()
        lost = [other for other in before if str(other.get("digest")) not in present]
        wanted = content
        for missing in (*lost, entry):
            wanted = referrers.with_entry(wanted, missing) or wanted
        if wanted is None or wanted == content:
            return changed
        before = list(referrers.listed(wanted))
        origin.push_manifest(tag, wanted, OCI_INDEX)
        changed = True
    raise Conflict("others change the list of referrers all the time", where=f"{origin.reference.name}:{tag}")
