"""The documents around a chunk index: its manifest, lists of referrers, and the tag that stands in for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fuse.artifact import referrers
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST
from fuse.artifact.referrers import CHUNK_INDEX, PROFILE
from fuse.errors import InvalidArtifact

SUBJECT = Digest.of(b"the model")
CONTENT = b"digests"
MANIFEST = referrers.manifest_of(CHUNK_INDEX, {"mediaType": OCI_MANIFEST, "digest": str(SUBJECT), "size": 9}, CONTENT)


def blob(content: bytes = MANIFEST, subject: Digest = SUBJECT, expected: int = len(CONTENT)) -> Digest:
    return referrers.document_blob(
        CHUNK_INDEX, content, OCI_MANIFEST, Digest.of(content), subject, fits=lambda size: size == expected
    ).digest


def entry(content: bytes, artifact_type: str = CHUNK_INDEX.artifact_type) -> dict[str, Any]:
    return referrers.descriptor(OCI_MANIFEST, content, artifactType=artifact_type)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(MANIFEST) | fields).encode()


def test_its_manifest_leads_to_the_blob() -> None:
    """And is the same each time."""
    assert Digest.of(CONTENT) == blob()
    assert MANIFEST == referrers.manifest_of(
        CHUNK_INDEX, {"mediaType": OCI_MANIFEST, "digest": str(SUBJECT), "size": 9}, CONTENT
    )


@pytest.mark.parametrize(
    "content",
    [
        changed(subject=None),
        changed(subject={"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"another")), "size": 9}),
        changed(subject="nonsense"),
        changed(artifactType="application/vnd.example"),
        changed(layers=[]),
        changed(layers=json.loads(MANIFEST)["layers"] * 2),
        changed(layers=[json.loads(MANIFEST)["config"]]),
        b"{}",
        json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode(),
    ],
)
def test_another_manifests_index_is_refused(content: bytes) -> None:
    """A hostile or broken one never names a blob."""
    with pytest.raises(InvalidArtifact):
        referrers.document_blob(CHUNK_INDEX, content, "", Digest.of(content), SUBJECT, fits=lambda _: True)


def test_an_index_of_another_length_is_refused() -> None:
    """Before its blob is asked for."""
    with pytest.raises(InvalidArtifact):
        blob(expected=len(CONTENT) + 1)


def test_candidates_come_in_an_order_that_is_theirs() -> None:
    """Whatever order the registry lists them in, and without what is not a chunk index."""
    entries = [entry(b"1"), entry(b"2"), entry(b"sbom", "application/spdx+json"), entry(b"3")]

    def order(listed: list[dict[str, Any]]) -> list[Digest]:
        listing = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
        return [found.digest for found in referrers.candidates(CHUNK_INDEX, listing, OCI_INDEX)]

    assert order(entries) == order(entries[::-1])
    assert {Digest.of(b"1"), Digest.of(b"2"), Digest.of(b"3")} == set(order(entries))


def test_the_newest_is_looked_at_first() -> None:
    """Of profiles, of which there may be several; what has no date comes last."""
    subject = {"mediaType": OCI_MANIFEST, "digest": str(SUBJECT), "size": 9}

    def dated(created: int | None) -> dict[str, Any]:
        return referrers.entry_of(
            PROFILE, referrers.manifest_of(PROFILE, subject, CONTENT, created=created), created=created
        )

    entries = [dated(created) for created in (1_700_000_000, None, 1_600_000_000, 1_800_000_000)]
    listing = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, entry(b"index")]})
    found = referrers.candidates(PROFILE, listing.encode(), OCI_INDEX)

    assert [entries[number]["digest"] for number in (3, 0, 2, 1)] == [str(listed.digest) for listed in found]
    assert "2027-01-15T08:00:00Z" == entries[3]["annotations"]["org.opencontainers.image.created"]


def test_an_entry_is_added_beside_the_others() -> None:
    """All that others wrote stays as it was, known to us or not."""
    other = {"mediaType": "x", "digest": "sha256:?", "size": 1, "annotations": {"a": "b"}, "new": [1]}
    listing = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other], "annotations": {"c": "d"}})

    content = referrers.with_entry(listing.encode(), entry(b"1"))

    assert content is not None
    assert json.loads(listing) | {"manifests": [other, entry(b"1")]} == json.loads(content)
    assert referrers.with_entry(content, entry(b"1")) is None
    fresh = referrers.with_entry(None, entry(b"1"))
    assert fresh is not None
    assert [entry(b"1")] == referrers.listed(fresh)


@pytest.mark.parametrize("listing", [b"[]", b"x", b'{"manifests": 5}', b'{"manifests": [5]}', MANIFEST])
def test_what_is_no_list_is_left_alone(listing: bytes) -> None:
    """Somebody's tag of that name is not overwritten."""
    with pytest.raises(InvalidArtifact):
        referrers.with_entry(listing, entry(b"1"))


def test_the_tag_is_the_specifications() -> None:
    """Distribution-spec 1.1: algorithm and digest, cut at 64 characters."""
    assert f"sha256-{SUBJECT.hex}" == referrers.tag_of(SUBJECT)
    assert 71 == len(referrers.tag_of(Digest.of(b"x", "sha512")))
