"""Artifacts and registries that are wrong in one way each: what to ask for, what the refusal must say, and what to do.

The table is used twice, through the command line and through CSI.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from fuse.artifact.digest import Digest
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import PackedModel
from weightless.demo.registry import MANIFEST_TYPE

REPOSITORY: Final = "models/bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    prepare: Callable[[FaultyRegistry, PackedModel], str]
    """Makes the registry bad; returns the reference to ask for."""
    code: grpc.StatusCode
    says: tuple[str, ...]
    """Words of what and where, in any case of letters."""
    fix: str
    """Words of what to do."""
    in_pods: str = ""
    """The same for who sees it in a pod's events, where that is something else."""


def _text(reference: str) -> Callable[[FaultyRegistry, PackedModel], str]:
    return lambda _registry, _packed: reference


def _scripted(words: str) -> Callable[[FaultyRegistry, PackedModel], str]:
    def prepare(registry: FaultyRegistry, packed: PackedModel) -> str:
        packed.serve(registry, REPOSITORY, "1")
        registry.script("manifest", words, forever=True)
        return f"{registry.host}/{REPOSITORY}:1"

    return prepare


def _stopped(registry: FaultyRegistry, packed: PackedModel) -> str:
    del packed
    host = registry.host
    registry.stop()
    return f"{host}/{REPOSITORY}:1"


def _locked(registry: FaultyRegistry, packed: PackedModel) -> str:
    registry.basic = {"somebody": "else"}
    packed.serve(registry, REPOSITORY, "1")
    return f"{registry.host}/{REPOSITORY}:1"


def _denied(registry: FaultyRegistry, packed: PackedModel) -> str:
    registry.denied = {REPOSITORY}
    packed.serve(registry, REPOSITORY, "1")
    return f"{registry.host}/{REPOSITORY}:1"


def _content(content: bytes, media_type: str = MANIFEST_TYPE) -> Callable[[FaultyRegistry, PackedModel], str]:
    def prepare(registry: FaultyRegistry, packed: PackedModel) -> str:
        packed.serve(registry, REPOSITORY, "good")
        registry.add_manifest(REPOSITORY, content, media_type=media_type, tags=["1"])
        return f"{registry.host}/{REPOSITORY}:1"

    return prepare


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[FaultyRegistry, PackedModel], str]:
    """The good manifest with one thing wrong."""

    def prepare(registry: FaultyRegistry, packed: PackedModel) -> str:
        packed.serve(registry, REPOSITORY, "good")
        manifest = json.loads(packed.manifest)
        change(manifest)
        registry.add_manifest(REPOSITORY, json.dumps(manifest).encode(), tags=["1"])
        return f"{registry.host}/{REPOSITORY}:1"

    return prepare


def _layer(**values: Any) -> Callable[[FaultyRegistry, PackedModel], str]:
    return _changed(lambda manifest: manifest["layers"][0].update(values))


def _filepath(path: str) -> Callable[[FaultyRegistry, PackedModel], str]:
    return _changed(lambda manifest: manifest["layers"][0]["annotations"].update({"org.cncf.model.filepath": path}))


def _twice(manifest: dict[str, Any]) -> None:
    first, second = manifest["layers"][:2]
    second["annotations"]["org.cncf.model.filepath"] = first["annotations"]["org.cncf.model.filepath"]


def _resized(manifest: dict[str, Any]) -> None:
    first = manifest["layers"][0]
    manifest["layers"].append({**first, "size": first["size"] + 1})


def _image(manifest: dict[str, Any]) -> None:
    manifest.pop("artifactType")
    manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
        layer.pop("annotations")


def _other_digest(registry: FaultyRegistry, packed: PackedModel) -> str:
    """The registry answers a request for one digest with the content of another."""
    packed.serve(registry, REPOSITORY, "1")
    asked = Digest.of(b"something else")
    registry._manifests[REPOSITORY, str(asked)] = (packed.manifest, packed.media_type)
    return f"{registry.host}/{REPOSITORY}@{asked}"


def _missing_tag(registry: FaultyRegistry, packed: PackedModel) -> str:
    packed.serve(registry, REPOSITORY, "1")
    return f"{registry.host}/{REPOSITORY}:2"


def _missing_repository(registry: FaultyRegistry, packed: PackedModel) -> str:
    packed.serve(registry, REPOSITORY, "1")
    return f"{registry.host}/models/other:1"


_C: Final = grpc.StatusCode
BAD_ARTIFACTS: Final = [
    Case(
        name="empty reference",
        prepare=_text(""),
        code=_C.INVALID_ARGUMENT,
        says=("reference", "empty"),
        fix="left unset",
    ),
    Case(
        name="nobody listens",
        prepare=_stopped,
        code=_C.UNAVAILABLE,
        says=("127.0.0.1", "refused"),
        fix="check host and port",
    ),
    Case(
        name="two sizes of one layer",
        prepare=_changed(_resized),
        code=_C.FAILED_PRECONDITION,
        says=("two sizes", REPOSITORY),
        fix="pack it again",
    ),
    Case(
        name="malformed reference",
        prepare=_text("not a reference"),
        code=_C.INVALID_ARGUMENT,
        says=("not a reference",),
        fix="expected host[:port]/repository",
    ),
    Case(
        name="malformed digest",
        prepare=_text("registry.example.com/model@sha256:abc"),
        code=_C.INVALID_ARGUMENT,
        says=("sha256:abc",),
        fix="lower-case hexadecimal",
    ),
    Case(
        name="unknown host",
        prepare=_text("registry.invalid/model:1"),
        code=_C.UNAVAILABLE,
        says=("registry.invalid",),
        fix="check the name, and the DNS",
    ),
    Case(
        name="unknown repository",
        prepare=_missing_repository,
        code=_C.NOT_FOUND,
        says=("models/other",),
        fix="check the host, the repository and the tag",
    ),
    Case(
        name="unknown tag",
        prepare=_missing_tag,
        code=_C.NOT_FOUND,
        says=(f"{REPOSITORY}:2",),
        fix="check the host, the repository and the tag",
    ),
    Case(
        name="401",
        prepare=_locked,
        code=_C.UNAUTHENTICATED,
        says=(REPOSITORY, "credential"),
        fix="docker login; in a pod, name a secret for it in the volume's nodePublishSecretRef",
        in_pods="there were no credentials",
    ),
    Case(
        name="403",
        prepare=_denied,
        code=_C.PERMISSION_DENIED,
        says=(REPOSITORY,),
        fix="ask the registry's owner",
        in_pods="name a secret for it in the volume's nodePublishSecretRef",
    ),
    Case(
        name="500",
        prepare=_scripted("500"),
        code=_C.UNAVAILABLE,
        says=("500",),
        fix="tell whoever runs it",
    ),
    Case(
        name="429",
        prepare=_scripted("429"),
        code=_C.UNAVAILABLE,
        says=("429",),
        fix="log in if it allows more",
    ),
    Case(
        name="closes early",
        prepare=_scripted("cut@20"),
        code=_C.UNAVAILABLE,
        says=("connection",),
        fix="try again",
    ),
    Case(
        name="not JSON",
        prepare=_content(b"<html>hello</html>"),
        code=_C.FAILED_PRECONDITION,
        says=("json",),
        fix="no login page or proxy in between",
    ),
    Case(
        name="not an object",
        prepare=_content(b"[]"),
        code=_C.FAILED_PRECONDITION,
        says=(REPOSITORY,),
        fix="no login page or proxy in between",
    ),
    Case(
        name="manifest too large",
        prepare=_changed(lambda manifest: manifest.update(annotations={"x": "y" * 5_000_000})),
        code=_C.FAILED_PRECONDITION,
        says=("4 mib",),
        fix="pack it again",
    ),
    Case(
        name="manifest and index at once",
        prepare=_changed(lambda manifest: manifest.update(manifests=[])),
        code=_C.FAILED_PRECONDITION,
        says=("manifests", REPOSITORY),
        fix="pack it again",
    ),
    Case(
        name="negative size",
        prepare=_layer(size=-1),
        code=_C.FAILED_PRECONDITION,
        says=("size",),
        fix="pack it again",
    ),
    Case(
        name="size is no number",
        prepare=_layer(size="many"),
        code=_C.FAILED_PRECONDITION,
        says=("size",),
        fix="pack and push the artifact again",
    ),
    Case(
        name="digest with a path",
        prepare=_layer(digest="sha256:../../etc"),
        code=_C.FAILED_PRECONDITION,
        says=("digest",),
        fix="lower-case hexadecimal",
    ),
    Case(
        name="name that climbs",
        prepare=_filepath("a/../../../etc/passwd"),
        code=_C.FAILED_PRECONDITION,
        says=("..",),
        fix="plain relative paths",
    ),
    Case(
        name="absolute name",
        prepare=_filepath("/etc/passwd"),
        code=_C.FAILED_PRECONDITION,
        says=("/etc/passwd",),
        fix="plain relative paths",
    ),
    Case(
        name="name with NUL",
        prepare=_filepath("a\0b"),
        code=_C.FAILED_PRECONDITION,
        says=("nul",),
        fix="plain relative paths",
    ),
    Case(
        name="same name twice",
        prepare=_changed(_twice),
        code=_C.FAILED_PRECONDITION,
        says=("twice",),
        fix="without one of the two",
    ),
    Case(
        name="compressed layer",
        prepare=_layer(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip"),
        code=_C.FAILED_PRECONDITION,
        says=("application/vnd.cncf.model.weight.v1.tar+gzip",),
        fix="without compression",
    ),
    Case(
        name="container image",
        prepare=_changed(_image),
        code=_C.FAILED_PRECONDITION,
        says=("application/vnd.oci.image.",),
        fix="ModelPack",
    ),
    Case(
        name="other content than the digest",
        prepare=_other_digest,
        code=_C.DATA_LOSS,
        says=("sha256:", "digest"),
        fix="remove it from the registry or mirror",
    ),
]
