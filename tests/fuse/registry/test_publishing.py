"""Pushing chunk indexes: with the referrers API, with the tag that stands in for it, and where pushing is not allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse.artifact import referrers
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import CHUNK_INDEX
from fuse.errors import Conflict, Forbidden, InvalidArtifact, InvalidConfig
from fuse.registry.access import Access, Credential, Endpoint
from fuse.registry.origin import Origin
from fuse.registry.publishing import push
from fuse.registry.transport import Transport
from tests.support.dockerregistry import DockerRegistry
from tests.support.pushregistry import PushRegistry
from tests.support.registry import Tokens
from weightless.demo.registry import Request, Response

MODEL = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []}).encode()
SUBJECT = referrers.descriptor(OCI_MANIFEST, MODEL)
TAG = referrers.tag_of(Digest.of(MODEL))
INDEX = b"the digests"
MANIFEST = referrers.manifest_of(CHUNK_INDEX, SUBJECT, INDEX)


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(environment={}) as made:
        yield made


def origin(transport: Transport, url: str, **fields: Any) -> Origin:
    host = url.split("://")[1]
    endpoint = Endpoint(
        url=f"{url}/v2", origin=True, named=True, **{"capabilities": ("pull", "resolve", "push")} | fields
    )
    access = Access(registry=host, endpoints=(endpoint,), local_allowed=True)
    return Origin(Reference.parse(f"{host}/m:v1"), access, transport, push=True)


def listed(found: Origin) -> list[str]:
    listing = found.manifest(TAG)
    return [] if listing is None else [entry["digest"] for entry in referrers.listed(listing.content)]


def test_a_registry_that_lists_referrers_is_left_to_it(transport: Transport) -> None:
    """No tag is made, and the index is found through the API."""
    with PushRegistry() as registry:
        registry.add_manifest("m", MODEL, tags=["v1"])
        there = origin(transport, registry.url)
        assert (Digest.of(MANIFEST), True) == push(there, CHUNK_INDEX, SUBJECT, INDEX)
        listing = there.referrers(Digest.of(MODEL), CHUNK_INDEX.artifact_type)

        assert listing is not None
        assert [Digest.of(MANIFEST)] == [
            found.digest for found in referrers.candidates(CHUNK_INDEX, listing.content, OCI_INDEX)
        ]
        assert there.manifest(TAG) is None
        assert INDEX == there.blob(Digest.of(INDEX), len(INDEX))


@pytest.mark.parametrize("api", [True, False])
def test_pushing_again_changes_nothing(transport: Transport, api: bool) -> None:
    """The second push stores nothing that was not there, and says so."""
    with PushRegistry(referrers_api=api) as registry:
        there = origin(transport, registry.url)
        push(there, CHUNK_INDEX, SUBJECT, INDEX)
        before = (dict(registry._manifests), dict(registry._blobs))

        assert (Digest.of(MANIFEST), False) == push(there, CHUNK_INDEX, SUBJECT, INDEX)
        assert before == (registry._manifests, registry._blobs)


def test_without_the_api_the_tag_keeps_the_entries_of_others(transport: Transport) -> None:
    """A signature that was listed before is still listed."""
    other = referrers.descriptor(OCI_MANIFEST, b"signature", artifactType="application/vnd.example.signature")
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other]}).encode()
    with PushRegistry(referrers_api=False) as registry:
        registry.add_manifest("m", content, media_type=OCI_INDEX, tags=[TAG])
        there = origin(transport, registry.url)
        push(there, CHUNK_INDEX, SUBJECT, INDEX)

        assert [other["digest"], str(Digest.of(MANIFEST))] == listed(there)


class _Rivals(PushRegistry):
    """Somebody else overwrites the list right after our first write (or after every one)."""

    always = False

    def serve(self, request: Request) -> Response:
        answer = super().serve(request)
        rivals = sum(entry == "rival" for entry in self.pushed)
        if request.method == "PUT" and request.path.endswith(TAG) and (self.always or not rivals):
            self.pushed.append("rival")
            theirs = referrers.descriptor(OCI_MANIFEST, b"theirs%d" % rivals, artifactType="x")
            listing = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [theirs]}).encode()
            self.add_manifest("m", listing, media_type=OCI_INDEX, tags=[TAG])
        return answer


def test_a_list_that_somebody_else_overwrote_is_mended(transport: Transport) -> None:
    """Both entries, and the one from before, are in it at the end."""
    first = referrers.descriptor(OCI_MANIFEST, b"first", artifactType="x")
    content = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [first]}).encode()
    with _Rivals(referrers_api=False) as registry:
        registry.add_manifest("m", content, media_type=OCI_INDEX, tags=[TAG])
        there = origin(transport, registry.url)
        push(there, CHUNK_INDEX, SUBJECT, INDEX)

        assert {first["digest"], str(Digest.of(b"theirs0")), str(Digest.of(MANIFEST))} == set(listed(there))


def test_a_list_that_never_holds_still_is_an_error(transport: Transport) -> None:
    """It is given up after a few tries, and said."""
    with _Rivals(referrers_api=False) as registry:
        registry.always = True
        with pytest.raises(Conflict):
            push(origin(transport, registry.url), CHUNK_INDEX, SUBJECT, INDEX)


def test_somebodys_tag_of_that_name_is_not_overwritten(transport: Transport) -> None:
    """A manifest that is no list stays what it is."""
    with PushRegistry(referrers_api=False) as registry:
        registry.add_manifest("m", MODEL, tags=[TAG])
        with pytest.raises(InvalidArtifact):
            push(origin(transport, registry.url), CHUNK_INDEX, SUBJECT, INDEX)

        assert (MODEL, OCI_MANIFEST) == registry._manifests["m", TAG]


def test_credentials_that_may_only_pull_are_told_so(transport: Transport) -> None:
    """403 to a push names the remedy."""
    with PushRegistry(read_only=True) as registry, pytest.raises(Forbidden, match="may push to this repository"):
        push(origin(transport, registry.url), CHUNK_INDEX, SUBJECT, INDEX)


def test_a_host_without_the_capability_is_not_pushed_to(transport: Transport) -> None:
    """hosts.toml's word counts."""
    with pytest.raises(InvalidConfig, match="pushed to"):
        origin(transport, "http://127.0.0.1:1", capabilities=("pull", "resolve"))


def test_a_token_for_pushing_is_asked_for(transport: Transport) -> None:
    """The challenge of a request that reads names pulling only."""
    with PushRegistry(tokens=Tokens(users={"u": "p"})) as registry:
        push(
            origin(transport, registry.url, credential=Credential(username="u", password="p")),
            CHUNK_INDEX,
            SUBJECT,
            INDEX,
        )

        scopes = {entry.request.query["scope"] for entry in registry.requests("token")}
        assert {"repository:m:pull,push"} == scopes


def test_docker_registry_gets_the_tag(transport: Transport, tmp_path: Path) -> None:
    """Debian's docker-registry has no referrers API and checks what it stores."""
    with DockerRegistry(tmp_path / "registry") as registry:
        there = origin(transport, registry.url)
        model = referrers.manifest_of(CHUNK_INDEX, SUBJECT, b"a model")
        there.push_blob(referrers.EMPTY_CONTENT)
        there.push_blob(b"a model")
        there.push_manifest("v1", model, OCI_MANIFEST)
        subject = referrers.descriptor(OCI_MANIFEST, model)
        digest, changed = push(there, CHUNK_INDEX, subject, INDEX)
        again = push(there, CHUNK_INDEX, subject, INDEX)
        listing = there.manifest(referrers.tag_of(Digest.of(model)))

        assert there.referrers(Digest.of(model), CHUNK_INDEX.artifact_type) is None
        assert changed
        assert (digest, False) == again
        assert listing is not None
        found = referrers.candidates(CHUNK_INDEX, listing.content, listing.media_type)
        assert [digest] == [entry.digest for entry in found]
        manifest = there.manifest(str(digest))
        assert manifest is not None
        layer = referrers.document_blob(
            CHUNK_INDEX, manifest.content, "", digest, Digest.of(model), fits=lambda size: size == len(INDEX)
        )
        assert INDEX == there.blob(layer.digest, layer.size)
