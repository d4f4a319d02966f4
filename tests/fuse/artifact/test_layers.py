"""From layers to files: names, packings, and bytes that are not what their type says."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from fuse.artifact import formats, layers
from fuse.artifact import manifest as manifests
from fuse.artifact.digest import Digest
from fuse.artifact.entries import Entry
from fuse.artifact.layers import UNPACK
from fuse.artifact.manifest import Manifest
from fuse.artifact.offsets import OffsetMaps
from fuse.errors import InvalidArtifact, NotAModel
from tests.fuse.artifact.test_tar import archive, named
from tests.support.artifacts import (
    EMPTY_CONFIG,
    FILEPATH,
    LAYER_TAR,
    MODEL_CONFIG,
    RAW,
    TAR,
    TITLE,
    Memory,
    Shelf,
    manifest,
)

LEGACY = "org.cnai.model.filepath"
ONE = archive((named("weights.bin"), b"w"))
TWO = archive((named("config.json"), b"{}"), (named("sub/merges.txt"), b"m"))


def opened(
    media_type: str, content: bytes, shelf: Shelf | None = None, memory: Memory | None = None, **annotations: Any
) -> list[Entry]:
    """What one layer of an artifact holds."""
    shelf = shelf or Shelf()
    config = shelf.layer(MODEL_CONFIG if "model" in media_type else EMPTY_CONFIG, b"{}")
    digest = shelf.add(manifest(shelf.layer(media_type, content, **annotations), config=config, artifactType=None))
    parsed = manifests.parse(shelf.manifests[digest].content, content_type="", digest=digest)
    assert isinstance(parsed, Manifest)
    maps = OffsetMaps(memory or Memory(), shelf, "r.io/a")
    return layers.entries(0, parsed.layers[0], formats.family(parsed), maps)


def paths(*arguments: Any, **annotations: Any) -> list[str]:
    return [entry.path for entry in opened(*arguments, **annotations) if entry.kind != "d"]


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({FILEPATH: "a", LEGACY: "b", TITLE: "c"}, "a"),
        ({LEGACY: "b", TITLE: "c"}, "b"),
        ({TITLE: "dir/c"}, "dir/c"),
        ({FILEPATH: "", TITLE: "c"}, "c"),
        ({FILEPATH: "../models/a"}, "models/a"),
        ({}, f"weight-{Digest.of(b'x').hex[:12]}"),
    ],
)
def test_a_file_has_the_first_name_that_is_said(annotations: dict[str, str], name: str) -> None:
    """ModelPack's annotation, its old name, the OCI title, then one made of kind and digest."""
    assert [name] == paths(RAW, b"x", **annotations)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.cncf.model.weight.config.v1.raw",
        "application/vnd.cnai.model.doc.v1.raw",
        "application/vnd.cncf.model.weight.v1.gguf",
        "application/octet-stream",
        "application/vnd.example.anything",
        "text/plain",
    ],
)
def test_a_layer_of_any_other_type_is_a_file(media_type: str) -> None:
    """Only suffixes count, so that new kinds need no new version; its bytes are not read."""
    shelf = Shelf()

    (entry,) = opened(media_type, b"content", shelf, **{TITLE: "name"})

    assert ("name", "f", 0, 7) == (entry.path, entry.kind, entry.offset, entry.size)
    assert [] == shelf.reads


@pytest.mark.parametrize(
    "prefix", ["application/vnd.cncf.model.weight.v1", "application/vnd.cnai.model.code.v1", "application/x-new"]
)
@pytest.mark.parametrize("suffix", [".tar+gzip", ".tar+zstd", ".raw+gzip", ".tar.gzip", "+zstd"])
def test_compressed_layers_are_refused_by_media_type(prefix: str, suffix: str) -> None:
    """Unread: they cannot be read lazily."""
    shelf = Shelf()
    with pytest.raises(NotAModel) as caught:
        opened(prefix + suffix, gzip.compress(b"x"), shelf, **{TITLE: "a"})
    assert prefix + suffix in str(caught.value)
    assert "layer sha256:" in caught.value.where
    assert [] == shelf.reads


@pytest.mark.parametrize("media_type", [TAR, "application/vnd.cnai.model.weight.v1.tar", LAYER_TAR])
def test_members_of_a_tar_are_files(media_type: str) -> None:
    """By their own names; an AIKit category such as `config` is no directory."""
    assert ["config.json", "sub/merges.txt"] == paths(
        media_type, TWO, **({FILEPATH: "config"} if "model" in media_type else {})
    )


def test_the_only_member_of_a_tar_has_the_annotations_path() -> None:
    """AIKit packs weights from within their directory; only where the last name is the same."""
    assert ["deep/weights.bin"] == paths(TAR, ONE, **{FILEPATH: "deep/weights.bin", TITLE: "x"})
    assert ["weights.bin"] == paths(TAR, ONE, **{FILEPATH: "other.bin"})
    assert ["weights.bin"] == paths(TAR, ONE)


def test_modelcars_directory_goes() -> None:
    """olot puts each file under models/, for images."""
    car = archive((named("models", b"5"), b""), (named("models/sub/m.joblib"), b"w"))
    olot = {"olot.layer.content.inlayerpath": "/models/sub/m.joblib", "olot.layer.content.type": "file"}

    assert ["sub/m.joblib"] == [
        entry.path for entry in opened(LAYER_TAR, car, **{TITLE: "m.joblib"}, **olot) if entry.kind == "f"
    ]
    assert ["sub/m.joblib"] == [entry.path for entry in opened(TAR, car, **{TITLE: "m.joblib"})]
    assert ["models/sub/m.joblib"] == paths(TAR, car)


def test_what_oras_calls_a_tar_is_a_file() -> None:
    """Its default type for any file, whatever its bytes are."""
    assert ["hello.txt"] == paths(LAYER_TAR, b"hello", **{TITLE: "hello.txt"})
    assert ["empty.txt"] == paths(LAYER_TAR, b"", **{TITLE: "empty.txt"})
    assert ["big.bin"] == paths(LAYER_TAR, b"x" * 5000, **{TITLE: "big.bin"})


@pytest.mark.parametrize("title", ["allfiles.tar", "directory", ""])
def test_what_oras_calls_a_tar_and_is_one_is_expanded(title: str) -> None:
    """By the magic at 257."""
    assert ["config.json", "sub/merges.txt"] == paths(LAYER_TAR, TWO, **({TITLE: title} if title else {}))


def test_a_tar_under_a_name_of_its_own_stays_a_file() -> None:
    """A .nemo checkpoint is a tar, and its users want the file; unless the packer says that it is to be unpacked."""
    assert ["model.nemo"] == paths(LAYER_TAR, TWO, **{TITLE: "model.nemo"})
    assert ["config.json", "sub/merges.txt"] == paths(LAYER_TAR, TWO, **{TITLE: "model.nemo", UNPACK: "true"})


@pytest.mark.parametrize(("magic", "name"), [(gzip.compress(TWO), "gzip"), (b"\x28\xb5\x2f\xfd" + b"x" * 600, "zstd")])
@pytest.mark.parametrize(
    ("media_type", "annotations"),
    [
        (LAYER_TAR, {}),
        (LAYER_TAR, {TITLE: "allfiles.tar.gz"}),
        (LAYER_TAR, {TITLE: "directory"}),
        (LAYER_TAR, {TITLE: "a.gz", UNPACK: "true"}),
        (TAR, {FILEPATH: "weights.bin"}),
    ],
)
def test_compressed_bytes_under_the_name_of_a_tar_are_refused(
    media_type: str, annotations: dict[str, str], magic: bytes, name: str
) -> None:
    """AIKit labels all three packings alike. The error says what was found."""
    with pytest.raises(NotAModel, match=name) as caught:
        opened(media_type, magic, **annotations)
    assert media_type in str(caught.value)


def test_a_compressed_file_that_says_so_in_its_name_is_a_file() -> None:
    """`oras push vocab.json.gz`."""
    assert ["vocab.json.gz"] == paths(LAYER_TAR, gzip.compress(b"{}"), **{TITLE: "vocab.json.gz"})


def test_a_model_tar_that_is_none_is_refused() -> None:
    """Its type is no default of any tool, so it means what it says."""
    for content in (b"hello", b"", b"x" * 5000):
        with pytest.raises(InvalidArtifact, match="not a usable tar"):
            opened(TAR, content, **{FILEPATH: "a"})


def test_a_generic_layer_without_a_name_is_refused() -> None:
    """An artifact that is no model and names no files is something else."""
    with pytest.raises(NotAModel, match="text/spdx"):
        opened("text/spdx", b"x")


def test_an_empty_file_must_have_the_digest_of_nothing() -> None:
    """The simplest lie about a size."""
    assert ["a"] == paths(RAW, b"", **{FILEPATH: "a"})
    with pytest.raises(InvalidArtifact, match="size"):
        opened(RAW, b"x", **{FILEPATH: "a", "size": 0})


def test_the_placeholder_of_an_artifact_without_layers_is_no_file() -> None:
    """OCI's empty descriptor stands where a layer must be."""
    assert [] == opened("application/vnd.oci.empty.v1+json", b"{}", **{TITLE: "a"})


def test_an_archives_map_is_remembered() -> None:
    """The second time costs no read; for another repository it is read anew, and so it is when the size differs."""
    shelf, memory = Shelf(), Memory()
    first = opened(TAR, TWO, shelf, memory)
    reads = len(shelf.reads)

    assert first == opened(TAR, TWO, shelf, memory)
    assert reads == len(shelf.reads)

    maps = OffsetMaps(memory, shelf, "r.io/other")
    assert maps.remembered(Digest.of(TWO), len(TWO)) is None
    maps = OffsetMaps(memory, shelf, "r.io/a")
    assert maps.remembered(Digest.of(TWO), len(TWO)) is not None
    assert maps.remembered(Digest.of(TWO), len(TWO) + 512) is None


def test_a_map_that_cannot_be_read_is_made_anew() -> None:
    """Of another version, or damaged."""
    shelf, memory = Shelf(), Memory()
    first = opened(TAR, TWO, shelf, memory)
    for key in memory.objects:
        memory.objects[key] = b'{"x":1}'

    assert first == opened(TAR, TWO, shelf, memory)


@pytest.mark.parametrize(
    ("media_type", "what"),
    [
        ("application/vnd.kitops.modelkit.config.v1+json", "KitOps"),
        ("application/vnd.docker.ai.model.config.v0.1+json", "Docker model"),
        ("application/vnd.ollama.image.model", "Ollama"),
        ("application/vnd.oci.image.config.v1+json", "container image"),
        ("application/vnd.docker.container.image.v1+json", "container image"),
        ("application/vnd.cncf.helm.config.v1+json", "Helm"),
    ],
)
@pytest.mark.parametrize("place", ["config", "layer", "artifactType"])
def test_other_formats_are_refused_by_name(media_type: str, what: str, place: str) -> None:
    """Wherever they show."""
    shelf = Shelf()
    config = shelf.layer(media_type if place == "config" else EMPTY_CONFIG, b"{}")
    layer = shelf.layer(media_type if place == "layer" else "text/plain", b"x", **{TITLE: "a"})
    artifact_type = media_type if place == "artifactType" else None
    digest = shelf.add(manifest(layer, config=config, artifactType=artifact_type))
    parsed = manifests.parse(shelf.manifests[digest].content, content_type="", digest=digest)
    assert isinstance(parsed, Manifest)

    with pytest.raises(NotAModel, match=what) as caught:
        formats.family(parsed)
    assert media_type in str(caught.value)


def test_laziness_is_told_in_words() -> None:
    """For `inspect`."""
    assert "range" == formats.laziness(RAW)
    assert "range (tar member)" == formats.laziness(TAR, offset=512)
