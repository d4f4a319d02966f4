"""Manifests and indexes: JSON to values, within limits.

OCI image-spec (manifest.md, image-index.md, descriptor.md) and Docker's schema 2, which differ by media types only. Unknown
fields are ignored, as the specification asks. A layer with `urls` is refused: content comes from where the administrator lets it
come from, and registries store manifests with such layers without asking whether the repository has them (distribution does), so
anybody could name what lies in a cache for somebody else.
Pure; says nothing about what the layers mean (`fuse.artifact.formats`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from fuse.artifact.digest import Digest
from fuse.errors import InvalidArtifact, NotAModel

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
"""What distribution-spec lets a registry refuse, and what containerd reads at most."""
MAX_LAYERS: Final = 10_000
MAX_TYPE_CHARACTERS: Final = 255
"""Of a media type, as RFC 6838 has it (127 before the slash and behind it): it goes into messages, tables and attributes."""
MAX_BLOB_BYTES: Final = 1 << 42
"""4 TiB, above any layer of a model. What is claimed costs disk and memory before a byte comes: 8 bytes of index a MiB."""
MAX_ARTIFACT_BYTES: Final = 1 << 44
"""16 TiB for all layers: their indexes, which no quota holds back, take 128 MiB then."""
# What a server answers that does not know what it serves: the document's own word is taken then.
_VAGUE: Final = frozenset({"", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    os: str
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A pointer to content: what it is, its digest and size."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str]
    artifact_type: str = ""
    platform: Platform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    digest: Digest
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]
    subject: Descriptor | None = None
    """The manifest that this one is about, if it is a referrer."""

    @property
    def kind(self) -> str:
        """What the artifact says it is: its artifactType, else its config's media type (OCI, manifest.md)."""
        return self.artifact_type or self.config.media_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    digest: Digest
    artifact_type: str
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str]


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    platform: _Platform | None = None
    urls: list[str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str | None = None
    artifact_type: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    annotations: dict[str, str] | None = None
    subject: msgspec.Raw = msgspec.Raw()


_DECODER: Final = msgspec.json.Decoder(_Document)


def parse(content: bytes, *, content_type: str, digest: Digest) -> Manifest | Index:
    """The manifest or index in `content`; `content_type` is what the registry called it, or empty.

    Raises InvalidArtifact, and NotAModel for a document of another kind.
    """
    where = f"manifest {digest}"
    if len(content) > MAX_MANIFEST_BYTES:
        raise InvalidArtifact(f"{len(content)} bytes, more than the {MAX_MANIFEST_BYTES} that are read", where=where)
    content_type = content_type.partition(";")[0].strip().lower()
    try:
        document = _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError) and _is_older_kind(content, content_type):
            raise _unknown_kind(content_type or "no media type", where) from None
        fix = "see that this host is a registry, with no login page or proxy in between; else pack and push the artifact again"
        raise InvalidArtifact(f"not a manifest in JSON: {error}", where=where, fix=fix) from error
    _check_type(document.artifact_type, where)
    media_type = _media_type(document, content_type, where)
    if document.schema_version != 2:
        raise NotAModel(f"schemaVersion is {document.schema_version}, not 2", where=where, fix="push it again as OCI")
    if media_type in INDEXES:
        # A document that can be read in two ways is refused: two readers could be shown two artifacts (OCI, CVE-2021-41190).
        if document.layers is not None or document.config is not None:
            raise InvalidArtifact("an index that also has the fields of a manifest", where=where)
        return Index(
            digest=digest,
            artifact_type=document.artifact_type or "",
            manifests=_descriptors(document.manifests, where),
            annotations=document.annotations or {},
        )
    if document.manifests is not None:
        raise InvalidArtifact("a manifest that also has the field `manifests` of an index", where=where)
    if document.config is None:
        raise InvalidArtifact("the manifest has no config", where=where)
    elsewhere = next((layer for layer in document.layers or () if layer.urls), None)
    if elsewhere is not None:
        what = f"layer {elsewhere.digest[:160]!r} is said to lie elsewhere (urls), where nothing is read from"
        raise InvalidArtifact(what, where=where, fix="push it again with its layers in the registry, and without urls")
    return Manifest(
        digest=digest,
        artifact_type=document.artifact_type or "",
        config=_descriptor(document.config, where),
        layers=_descriptors(document.layers, where),
        annotations=document.annotations or {},
        subject=_subject(document.subject, where),
    )


def _subject(raw: msgspec.Raw, where: str) -> Descriptor | None:
    """Looked at for itself: a broken one makes no model unreadable, since a model's subject means nothing here."""
    if not bytes(raw):
        return None
    try:
        return _descriptor(msgspec.json.decode(raw, type=_Descriptor), where)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidArtifact):
        return None


def _media_type(document: _Document, content_type: str, where: str) -> str:
    said = document.media_type or ""
    if said and content_type not in _VAGUE and said != content_type:
        raise InvalidArtifact(f"its mediaType is {said!r}, but the registry calls it {content_type!r}", where=where)
    media_type = said or ("" if content_type in _VAGUE else content_type)
    if not media_type:
        return OCI_INDEX if document.manifests is not None else OCI_MANIFEST
    if media_type not in MANIFESTS | INDEXES:
        raise _unknown_kind(media_type, where)
    return media_type


def _is_older_kind(content: bytes, content_type: str) -> bool:
    """Docker's schema 1 and OCI's withdrawn artifact manifest lack fields that all others have."""
    return (
        content_type.startswith("application/vnd.") and content_type not in MANIFESTS | INDEXES and b"{" in content[:64]
    )


def _unknown_kind(media_type: str, where: str) -> NotAModel:
    return NotAModel(
        f"a manifest of media type {media_type!r} is not understood", where=where, fix=f"expected {OCI_MANIFEST}"
    )


def _check_type(media_type: str | None, where: str) -> None:
    if media_type is not None and len(media_type) > MAX_TYPE_CHARACTERS:
        raise InvalidArtifact(f"a media type of {len(media_type)} characters, {media_type[:40]!r}…", where=where)


def _descriptors(found: list[_Descriptor] | None, where: str) -> tuple[Descriptor, ...]:
    if found is not None and len(found) > MAX_LAYERS:
        raise InvalidArtifact(f"{len(found)} entries, more than the {MAX_LAYERS} that are read", where=where)
    return tuple(_descriptor(one, where) for one in found or ())


def _descriptor(found: _Descriptor, where: str) -> Descriptor:
    if not 0 <= found.size <= MAX_BLOB_BYTES:
        raise InvalidArtifact(f"an impossible size, {found.size} bytes, for {found.digest[:160]!r}", where=where)
    _check_type(found.media_type, where)
    _check_type(found.artifact_type, where)
    try:
        digest = Digest.parse(found.digest)
    except InvalidArtifact as error:
        raise InvalidArtifact(error.what, where=where, fix=error.fix) from None
    platform = found.platform
    return Descriptor(
        media_type=found.media_type,
        digest=digest,
        size=found.size,
        annotations=found.annotations or {},
        artifact_type=found.artifact_type or "",
        platform=Platform(os=platform.os, architecture=platform.architecture) if platform else None,
    )
