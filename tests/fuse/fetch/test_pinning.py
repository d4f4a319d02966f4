"""What a controller asks of a registry: the digest of a tag, and whether a model is there. Real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from fuse.artifact.digest import Digest
from fuse.errors import (
    Cancelled,
    Corrupt,
    Forbidden,
    InvalidArtifact,
    NotAModel,
    NotFound,
    Unauthenticated,
    Unavailable,
    WeightlessError,
)
from fuse.fetch.pinning import Pinner
from fuse.registry import repository
from fuse.registry.access import Access, Credential, Endpoint
from tests.support.registry import FaultyRegistry

REPOSITORY = "models/tiny"
LAYER = {
    "mediaType": "application/vnd.cncf.model.weight.v1.raw",
    "digest": f"sha256:{'a' * 64}",
    "size": 5,
}
CONFIG = {
    "mediaType": "application/vnd.cncf.model.config.v1+json",
    "digest": f"sha256:{'b' * 64}",
    "size": 2,
}


def manifest(**changes: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], **changes}).encode()


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_backoff", lambda _state: 0.01)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as server:
        yield server


@pytest.fixture
def pinner() -> Iterator[Pinner]:
    made = Pinner()
    yield made
    made.close()


def access(registry: FaultyRegistry, password: str = "") -> Access:
    credential = Credential(username="robot", password=password) if password else None
    endpoint = Endpoint(url=f"http://{registry.host}/v2", origin=True, credential=credential)
    return Access(registry=registry.host, endpoints=(endpoint,), local_allowed=True)


def pin(pinner: Pinner, registry: FaultyRegistry, target: str = ":v1", password: str = "") -> str:
    return pinner.pin(f"{registry.host}/{REPOSITORY}{target}", access(registry, password), threading.Event())


def test_a_tag_is_pinned_and_only_the_manifest_is_asked_for(pinner: Pinner, registry: FaultyRegistry) -> None:
    """Tag and digest, so that people still see which version it was."""
    content = manifest()
    registry.add_manifest(REPOSITORY, content, tags=["v1"])

    assert pin(pinner, registry) == f"{registry.host}/{REPOSITORY}:v1@{Digest.of(content)}"
    assert {"manifest"} == {entry.kind for entry in registry.requests()}


def test_a_digest_stays_and_is_still_asked_for(pinner: Pinner, registry: FaultyRegistry) -> None:
    """What is pinned already has to be there all the same."""
    content = manifest()
    registry.add_manifest(REPOSITORY, content)
    target = f"@{Digest.of(content)}"

    assert pin(pinner, registry, target).endswith(target)
    with pytest.raises(NotFound):
        pin(pinner, registry, f"@sha256:{'0' * 64}")


def test_an_index_is_pinned_as_a_whole(pinner: Pinner, registry: FaultyRegistry) -> None:
    """Which of its manifests counts is for a node of whatever architecture to say."""
    child = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": LAYER["digest"], "size": 1}
    media_type = "application/vnd.oci.image.index.v1+json"
    content = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": [child]}).encode()
    registry.add_manifest(REPOSITORY, content, tags=["v1"], media_type=media_type)

    assert pin(pinner, registry).endswith(f"@{Digest.of(content)}")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (manifest(config={**CONFIG, "mediaType": "application/vnd.oci.image.config.v1+json"}), NotAModel),
        (manifest(layers=[{**LAYER, "mediaType": "application/vnd.cncf.model.weight.v1.tar+gzip"}]), NotAModel),
        (manifest(config=None), InvalidArtifact),
        (b"<html>log in</html>", InvalidArtifact),
    ],
    ids=["image", "compressed", "no-config", "login-page"],
)
def test_what_no_node_could_mount_is_refused_when_it_is_claimed(
    pinner: Pinner, registry: FaultyRegistry, content: bytes, kind: type[WeightlessError]
) -> None:
    """At the claim, not in the pod that waits for it; the reference is named."""
    registry.add_manifest(REPOSITORY, content, tags=["v1"])
    with pytest.raises(kind) as caught:
        pin(pinner, registry)
    assert f"{registry.host}/{REPOSITORY}:v1" in caught.value.where


@pytest.mark.parametrize(
    ("words", "kind"),
    [("404", NotFound), ("403", Forbidden), ("500 500 500", Unavailable), ("corrupt", Corrupt)],
)
def test_what_the_registry_says_is_told(
    pinner: Pinner, registry: FaultyRegistry, words: str, kind: type[WeightlessError]
) -> None:
    """Each as its own error."""
    registry.add_manifest(REPOSITORY, manifest(), tags=["v1"])
    registry.script("manifest", words)
    with pytest.raises(kind):
        pin(pinner, registry)


def test_credentials_are_proven(pinner: Pinner) -> None:
    """Without them the registry refuses."""
    with FaultyRegistry(basic={"robot": "right"}) as registry:
        registry.add_manifest(REPOSITORY, manifest(), tags=["v1"])
        assert pin(pinner, registry, password="right")
        for wrong in ("", "wrong"):
            with pytest.raises(Unauthenticated):
                pin(pinner, registry, password=wrong)


def test_it_is_given_up_when_it_is_cancelled(pinner: Pinner, registry: FaultyRegistry) -> None:
    """A controller that ends does not try again and again."""
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        pinner.pin(f"{registry.host}/{REPOSITORY}:v1", access(registry), cancel)
    assert registry.requests() == []
