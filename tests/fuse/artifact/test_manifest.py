"""Manifests: what is read, what is refused, and that nothing else comes out."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact import manifest as manifests
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Index, Manifest
from fuse.errors import InvalidArtifact, NotAModel
from tests.support.artifacts import MODEL, MODEL_CONFIG, RAW, descriptor, index, manifest

DIGEST = Digest.of(b"x")
CONFIG = descriptor(MODEL_CONFIG, DIGEST, 2)
LAYER = descriptor(RAW, DIGEST, 1)


def parsed(document: object, content_type: str = "") -> Manifest | Index:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return manifests.parse(content, content_type=content_type, digest=Digest.of(content))


def test_a_manifest_becomes_values() -> None:
    """Unknown fields are ignored."""
    found = parsed(
        manifest(LAYER | {"urls": [], "data": "eA==", "new": 1}, config=CONFIG, subject=CONFIG, x=[]),
        f"{OCI_MANIFEST}; charset=utf-8",
    )

    assert isinstance(found, Manifest)
    assert MODEL == found.kind
    assert (DIGEST, 1, RAW) == (found.layers[0].digest, found.layers[0].size, found.layers[0].media_type)


def test_the_kind_is_the_configs_where_the_artifact_type_is_gone() -> None:
    """Some clients drop the artifactType when they copy."""
    found = parsed(manifest(LAYER, config=CONFIG, artifactType=None))

    assert isinstance(found, Manifest)
    assert MODEL_CONFIG == found.kind


@pytest.mark.parametrize("where", ["artifact", "layer", "config"])
def test_a_media_type_that_is_a_book_is_refused(where: str) -> None:
    """It is shown, sent between processes, and an attribute of each file; one of ordinary length is nobody's trouble."""
    for length, fits in ((255, True), (256, False)):
        long = "application/".ljust(length, "x")
        document = manifest(
            LAYER | ({"mediaType": long} if where == "layer" else {}),
            config=CONFIG | ({"mediaType": long} if where == "config" else {}),
            artifactType=long if where == "artifact" else MODEL,
        )
        refused = contextlib.nullcontext() if fits else pytest.raises(InvalidArtifact, match="256 characters")
        with refused:
            assert isinstance(parsed(document), Manifest)


def test_nulls_of_gos_encoder_are_empty() -> None:
    """Go writes null for a nil slice or map."""
    found = parsed(manifest(config=CONFIG | {"annotations": None}) | {"layers": None, "annotations": None})

    assert isinstance(found, Manifest)
    assert () == found.layers
    assert {} == found.config.annotations


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "application/octet-stream", "text/plain; charset=utf-8"]
)
def test_a_vague_content_type_leaves_the_word_to_the_document(content_type: str) -> None:
    """Plain file servers are mirrors too."""
    assert isinstance(parsed(manifest(LAYER, config=CONFIG), content_type), Manifest)
    assert isinstance(parsed(index(LAYER), content_type), Index)
    assert isinstance(parsed(manifest(LAYER, config=CONFIG, mediaType=None), content_type), Manifest)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [(OCI_MANIFEST, Manifest), (DOCKER_MANIFEST, Manifest), (OCI_INDEX, Index), (DOCKER_LIST, Index)],
)
def test_a_document_without_media_type_is_what_the_registry_says(content_type: str, kind: type) -> None:
    """OCI lets a document leave its mediaType out."""
    document = manifest(LAYER, config=CONFIG, mediaType=None) if kind is Manifest else index(LAYER, mediaType=None)

    assert isinstance(parsed({key: value for key, value in document.items() if value is not None}, content_type), kind)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b"null", OCI_MANIFEST),
        (b"<html>not found</html>", "text/html"),
        (b"\xff\xfe", ""),
        (b'{"schemaVersion":2,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
        (b'{"schemaVersion":2,"annotations":{"\xff":"x"}}', ""),
        (manifest(LAYER), ""),
        (manifest(LAYER, config=CONFIG, manifests=[]), ""),
        (manifest(LAYER, config=CONFIG, manifests=[LAYER], mediaType=None), ""),
        (index(LAYER, layers=[LAYER]), ""),
        (index(LAYER, config=CONFIG), ""),
        (manifest(LAYER, config=CONFIG), OCI_INDEX),
        (index(LAYER), OCI_MANIFEST),
        (manifest(LAYER, config=CONFIG), DOCKER_MANIFEST),
        (manifest(LAYER | {"size": -1}, config=CONFIG), ""),
        (manifest(LAYER | {"size": 2**42 + 1}, config=CONFIG), ""),
        (manifest(LAYER | {"size": 2**80}, config=CONFIG), ""),
        (manifest(LAYER | {"size": "1"}, config=CONFIG), ""),
        (manifest(LAYER | {"size": 1.5}, config=CONFIG), ""),
        (manifest(LAYER | {"digest": "sha256:../../x"}, config=CONFIG), ""),
        (manifest(LAYER | {"digest": "md5:" + "a" * 32}, config=CONFIG), ""),
        (manifest(LAYER, config=CONFIG | {"digest": ""}), ""),
        (manifest(LAYER | {"annotations": {"a": 1}}, config=CONFIG), ""),
        (manifest({"digest": str(DIGEST)}, config=CONFIG), ""),
        (manifest(LAYER, LAYER | {"urls": ["https://elsewhere.test/x"]}, config=CONFIG), ""),
        (manifest(*[LAYER] * 10_001, config=CONFIG), ""),
        (manifest(LAYER, config=CONFIG, annotations={"x": "y" * 5 * 1024 * 1024}), ""),
    ],
)
def test_malformed_manifests_are_refused(document: dict[str, Any] | bytes, content_type: str) -> None:
    """As InvalidArtifact, naming the manifest."""
    with pytest.raises(InvalidArtifact) as caught:
        parsed(document, content_type)
    assert "manifest sha256:" in caught.value.where
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (
            {"schemaVersion": 1, "name": "x", "fsLayers": []},
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
        (manifest(LAYER, config=CONFIG, schemaVersion=1), ""),
        (manifest(LAYER, config=CONFIG, mediaType="application/vnd.oci.artifact.manifest.v1+json"), ""),
        (
            {"mediaType": "application/vnd.oci.artifact.manifest.v1+json"},
            "application/vnd.oci.artifact.manifest.v1+json",
        ),
        (manifest(LAYER, config=CONFIG, mediaType="application/vnd.example+json"), ""),
    ],
)
def test_other_kinds_of_manifests_are_refused_by_name(document: dict[str, Any], content_type: str) -> None:
    """They are well-formed, but not ours to read."""
    with pytest.raises(NotAModel):
        parsed(document, content_type)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
FIELDS = ["schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "annotations"]


@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON),
    content_type=st.sampled_from(["", OCI_MANIFEST, OCI_INDEX, "a/b"]),
)
def test_any_json_is_a_manifest_or_refused(fields: dict[str, Any], content_type: str) -> None:
    """Nothing but our own errors comes out."""
    with contextlib.suppress(InvalidArtifact, NotAModel):
        parsed(manifest(LAYER, config=CONFIG) | fields, content_type)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(content: bytes) -> None:
    """Nothing but our own errors comes out."""
    with contextlib.suppress(InvalidArtifact, NotAModel):
        parsed(content)
