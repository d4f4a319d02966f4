"""Artifacts in memory: what resolving sees of a registry and of a cache, counted, and manifests made by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST
from fuse.errors import Forbidden, NotFound, WeightlessError

MODEL = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
RAW = "application/vnd.cncf.model.weight.v1.raw"
TAR = "application/vnd.cncf.model.weight.v1.tar"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
UNKNOWN = "application/vnd.unknown.artifact.v1"
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True)
class Answer:
    content: bytes
    media_type: str
    digest: Digest


class Bytes:
    """A blob's content: real bytes, or a function of offset and length for what no memory holds."""

    def __init__(
        self, content: bytes | None = None, *, size: int = 0, read: Callable[[int, int], bytes] | None = None
    ) -> None:
        self.size = size if content is None else len(content)
        self._read = read or (lambda offset, length: (content or b"")[offset : offset + length])

    def read(self, offset: int, length: int) -> bytes:
        return self._read(offset, length)


@dataclass
class Shelf:
    """A registry's repository, the cache's ranged reads, and a list of what was asked: three seams in one."""

    tags: dict[str, Digest] = field(default_factory=dict)
    manifests: dict[Digest, Answer] = field(default_factory=dict)
    blobs: dict[Digest, Bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    reads: list[tuple[Digest, int, int]] = field(default_factory=list)
    forbidden: set[Digest] = field(default_factory=set)
    fault: WeightlessError | None = None
    _being_read: set[Digest] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # the registry

    def manifest(self, target: str, *, expected: Digest | None = None, cancel: threading.Event | None = None) -> Answer:
        self.asked.append(f"GET {target}")
        if target not in self.tags and ":" not in target:
            raise NotFound("tag unknown", where=target)
        digest = self.tags.get(target) or Digest.parse(target)
        if digest in self.forbidden:
            raise Forbidden("denied", where=target)
        if digest not in self.manifests:
            raise NotFound("manifest unknown", where=target)
        if expected is not None:
            assert expected == digest
        return self.manifests[digest]

    def exists(self, digest: Digest, *, cancel: threading.Event | None = None) -> None:
        self.asked.append(f"HEAD {digest}")
        if digest in self.forbidden:
            raise Forbidden("denied", where=str(digest))
        if digest not in self.manifests:
            raise NotFound("manifest unknown", where=str(digest))

    def small_blob(self, digest: Digest, size: int, *, limit: int, cancel: threading.Event | None = None) -> bytes:
        self.asked.append(f"BLOB {digest}")
        assert size <= limit
        return self.blobs[digest].read(0, size)

    # the cache

    def read(self, digest: Digest, size: int, offset: int, length: int, /) -> bytes:
        assert 0 <= offset <= offset + length <= size
        assert length > 0
        with self._lock:
            self.reads.append((digest, offset, length))
            assert digest not in self._being_read, "one blob is read by two threads"
            self._being_read.add(digest)
        try:
            return self._read(digest, offset, length)
        finally:
            with self._lock:
                self._being_read.discard(digest)

    def _read(self, digest: Digest, offset: int, length: int) -> bytes:
        if self.fault is not None:
            raise self.fault
        return self.blobs[digest].read(offset, length)

    # making artifacts

    def add_blob(self, content: bytes | Bytes, digest: Digest | None = None) -> Digest:
        blob = content if isinstance(content, Bytes) else Bytes(content)
        digest = digest or Digest.of(blob.read(0, blob.size))
        self.blobs[digest] = blob
        return digest

    def layer(
        self, media_type: str, content: bytes | Bytes, digest: Digest | None = None, /, **extra: Any
    ) -> dict[str, Any]:
        """A descriptor; other keys are annotations, but for `size`."""
        digest = self.add_blob(content, digest)
        size = extra.pop("size", self.blobs[digest].size)
        return descriptor(media_type, digest, size, **extra)

    def file(self, path: str, content: bytes, **annotations: str) -> dict[str, Any]:
        return self.layer(RAW, content, **{FILEPATH: path}, **annotations)

    def add(self, document: dict[str, Any] | bytes, *, media_type: str = "", tag: str = "") -> Digest:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        if not media_type and isinstance(document, dict):
            media_type = document.get("mediaType", "")
        digest = Digest.of(content)
        self.manifests[digest] = Answer(content, media_type, digest)
        if tag:
            self.tags[tag] = digest
        return digest

    def model(self, *layers: dict[str, Any], tag: str = "v1", config: bytes = b"{}", **fields: Any) -> Digest:
        return self.add(manifest(*layers, config=self.layer(MODEL_CONFIG, config), **fields), tag=tag)

    def generic(self, *layers: dict[str, Any], tag: str = "v1", **fields: Any) -> Digest:
        config = self.layer(EMPTY_CONFIG, b"{}")
        return self.add(manifest(*layers, config=config, **{"artifactType": UNKNOWN} | fields), tag=tag)

    def child(self, digest: Digest, **fields: Any) -> dict[str, Any]:
        return descriptor(OCI_MANIFEST, digest, len(self.manifests[digest].content)) | fields


class Memory:
    """An object store that forgets nothing."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}

    def get(self, kind: str, key: str, /) -> bytes | None:
        return self.objects.get((kind, key))

    def put(self, kind: str, key: str, content: bytes, /) -> None:
        self.objects[kind, key] = content


def descriptor(media_type: str, digest: Digest, size: int, **annotations: str) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": str(digest), "size": size}
    return found | ({"annotations": annotations} if annotations else {})


def manifest(*layers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": MODEL, "layers": list(layers)}
    return {key: value for key, value in (base | fields).items() if value is not None}


def index(*manifests: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests)} | fields
