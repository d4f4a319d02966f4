"""Which family an artifact belongs to, and what a layer's media type says about its bytes.

The family decides how files are named; how a layer is packed is told by the suffix of its media type, never by its kind: tools
disagree about kinds (a tokenizer is a weight to one and a config to another). What is not understood is refused by name. Pure.
"""

from __future__ import annotations

from typing import Final, Literal

from fuse.artifact.manifest import Descriptor, Manifest
from fuse.errors import NotAModel

Family = Literal["modelpack", "generic"]
Packing = Literal["raw", "tar", "tar?"]
"""`tar?`: the type claims a tar, but tools put it on plain files too (ORAS does by default): the bytes decide."""

MODEL_PREFIXES: Final = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
"""ModelPack's media types, and their names before version 0.2."""
EMPTY: Final = "application/vnd.oci.empty.v1+json"

_UNDERSTOOD: Final = "ModelPack artifacts (.raw and .tar layers) and ORAS artifacts with titles can be mounted"
_OTHER_FAMILIES: Final = (
    ("application/vnd.kitops.modelkit.", "a KitOps ModelKit", "pack it with `kit pack --use-model-pack`"),
    ("application/vnd.docker.ai.", "a Docker model", "package it with `docker model package --format cncf`"),
    ("application/vnd.ollama.", "an Ollama model", ""),
    ("application/vnd.oci.image.config.", "a container image", ""),
    ("application/vnd.docker.container.image.", "a container image", ""),
    ("application/vnd.cncf.helm.", "a Helm chart", ""),
)
_GENERIC_TARS: Final = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/x-tar",
        "application/tar",
    }
)
_COMPRESSED: Final = (
    "+gzip",
    ".gzip",
    "+zstd",
    ".zstd",
    "+gz",
    ".gz",
    "+zst",
    "+bzip2",
    "+xz",
    "/gzip",
    "/x-gzip",
    "/zstd",
)


def is_model_type(media_type: str) -> bool:
    return media_type.startswith(MODEL_PREFIXES)


def family(manifest: Manifest) -> Family:
    """Raises NotAModel for the families that are known but not understood."""
    # Both are asked: some clients drop the artifactType when they copy an artifact.
    types = [manifest.artifact_type, manifest.config.media_type]
    if any(is_model_type(one) for one in types):
        return "modelpack"
    types += [layer.media_type for layer in manifest.layers]
    for one in types:
        for prefix, what, fix in _OTHER_FAMILIES:
            if one.startswith(prefix):
                raise NotAModel(
                    f"{what} (media type {one!r}) is not understood yet",
                    where=f"manifest {manifest.digest}",
                    fix=fix or _UNDERSTOOD,
                )
    return "generic"


def packing(layer: Descriptor) -> Packing:
    """Raises NotAModel for a layer that must be decompressed before any of it can be read."""
    media_type = layer.media_type.partition(";")[0].strip().lower()
    if media_type.endswith(_COMPRESSED):
        raise compressed(layer)
    if media_type in _GENERIC_TARS:
        return "tar?"
    return "tar" if media_type.endswith(".tar") else "raw"


def compressed(layer: Descriptor, found: str = "") -> NotAModel:
    """The refusal of a compressed layer; `found`: what its first bytes are, where its media type says otherwise."""
    what = f"the layer of media type {layer.media_type!r} is compressed"
    if found:
        what = f"the layer of media type {layer.media_type!r} is in fact compressed with {found}"
    return NotAModel(
        f"{what}, which is not understood yet",
        where=f"layer {layer.digest}",
        fix="pack the model without compression; weights hardly shrink, and only plain layers can be read lazily",
    )


def kind_of(layer: Descriptor) -> str:
    """The kind in a ModelPack media type (`weight.config`, `doc`, …); `layer` for all others."""
    for prefix in MODEL_PREFIXES:
        if layer.media_type.startswith(prefix):
            kind = layer.media_type.removeprefix(prefix).partition(".v1")[0]
            if kind and all(char.isalnum() or char == "." for char in kind) and kind.isascii():
                return kind.strip(".") or "layer"
    return "layer"


def laziness(media_type: str, *, offset: int = 0) -> str:
    """How lazily a file can be read, for people. Every packing that is understood lets any range be read at once.

    `offset` is the file's in its blob: above 0 for a member of a tar, which is found by its offset map.
    """
    return "range (tar member)" if media_type.endswith(".tar") and offset else "range"
