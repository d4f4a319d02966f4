"""Which manifest of an index is the model."""

from __future__ import annotations

from typing import Any

import pytest

from fuse.artifact import manifest as manifests
from fuse.artifact.choice import MAX_PEEKS, choose, node_architecture
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest
from fuse.errors import NotAModel
from tests.support.artifacts import EMPTY_CONFIG, MODEL, MODEL_CONFIG, RAW, UNKNOWN, Shelf, descriptor, index, manifest


def child(
    name: str, platform: str = "", artifact_type: str = "", media_type: str = OCI_MANIFEST, **annotations: str
) -> dict[str, Any]:
    found = descriptor(media_type, Digest.of(name.encode()), 2, **annotations)
    if platform:
        system, architecture = platform.split("/")
        found["platform"] = {"os": system, "architecture": architecture}
    return found | ({"artifactType": artifact_type} if artifact_type else {})


def chosen(*children: dict[str, Any], models: tuple[str, ...] = (), config: str = MODEL_CONFIG) -> str:
    """The name of the chosen child; those named in `models` turn out to be models when they are looked at."""
    shelf = Shelf()
    digest = shelf.add(index(*children))
    parsed = manifests.parse(shelf.manifests[digest].content, content_type="", digest=digest)
    assert isinstance(parsed, Index)
    peeked: list[Descriptor] = []

    def peek(descriptor_: Descriptor) -> Manifest | Index:
        peeked.append(descriptor_)
        is_model = descriptor_.digest in [Digest.of(name.encode()) for name in models]
        document = manifest(
            config=descriptor(config if is_model else EMPTY_CONFIG, Digest.of(b""), 0), artifactType=None
        )
        inner = shelf.add(document)
        return manifests.parse(shelf.manifests[inner].content, content_type="", digest=inner)

    found = choose(parsed, "arm64", peek)
    assert len(peeked) <= MAX_PEEKS
    names = {Digest.of(name.encode()): name for name in (*"abcdefgh", *models)}
    return names[found.digest]


def test_a_model_comes_before_this_machines_platform() -> None:
    """Modelcars list their model as unknown/unknown beside the images."""
    assert "b" == chosen(child("a", "linux/arm64"), child("b", "unknown/unknown", MODEL))


def test_a_model_is_found_by_its_manifest_where_the_index_does_not_say() -> None:
    """By its config's type, for some clients drop the artifactType."""
    assert "b" == chosen(child("a", "linux/arm64"), child("b", "unknown/unknown"), models=("b",))
    assert "c" == chosen(child("a"), child("b"), child("c"), models=("c",))
    assert "b" == chosen(child("a"), child("b"), models=("b",), config="application/vnd.cnai.model.config.v1+json")


def test_of_several_models_this_machines_is_taken_then_the_first() -> None:
    """An index may hold one for each accelerator's host."""
    assert "b" == chosen(child("a", "linux/amd64", MODEL), child("b", "linux/arm64", MODEL))
    assert "a" == chosen(child("a", "linux/amd64", MODEL), child("b", "linux/s390x", MODEL))


def test_this_machines_platform_comes_next() -> None:
    """As for images."""
    assert "b" == chosen(child("a", "linux/amd64"), child("b", "linux/arm64"))


def test_the_only_one_is_taken_whatever_it_is() -> None:
    """What it is, is told by its manifest."""
    assert "a" == chosen(child("a", "windows/amd64"))
    assert "a" == chosen(
        child("a", "linux/amd64"),
        child("b", "unknown/unknown", **{"vnd.docker.reference.type": "attestation-manifest"}),
    )
    assert "a" == chosen(child("a"), child("b", media_type=RAW))
    assert "a" == chosen(child("a", media_type=OCI_INDEX))


def test_an_index_without_a_choice_is_refused_with_what_it_offers() -> None:
    """Empty, or only other platforms."""
    with pytest.raises(NotAModel, match="linux/amd64, linux/s390x"):
        chosen(child("a", "linux/amd64"), child("b", "linux/s390x"))
    with pytest.raises(NotAModel, match="nothing"):
        chosen()
    with pytest.raises(NotAModel):
        chosen(child("a", artifact_type=UNKNOWN), child("b", artifact_type=UNKNOWN))


def test_a_large_index_is_not_read_whole() -> None:
    """Only a few manifests are looked at."""
    with pytest.raises(NotAModel):
        chosen(*[child(f"{number}") for number in range(100)])


def test_this_machine_has_an_architecture_in_gos_words() -> None:
    """amd64, not x86_64."""
    assert node_architecture() not in ("", "x86_64", "aarch64")
