"""Packs a directory as a ModelPack artifact (model-spec, `application/vnd.cncf.model.manifest.v1+json`) without copying it.

Raw layers read the files in place; tar layers are a header, the file and padding, joined while they are served. Pure apart from
reading the directory once for the digests.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from fuse.artifact.digest import Digest
from weightless.demo.registry import MANIFEST_TYPE, ModelRegistry
from weightless.demo.sources import BlobSource, BytesSource, FileSource, JoinedSource, digest_of

Encoding = Literal["raw", "tar"]

_WEIGHT_SUFFIXES: Final = {".safetensors", ".bin", ".pt", ".gguf", ".onnx", ".h5", ".pth"}
_CONFIG_SUFFIXES: Final = {".json", ".yaml", ".yml", ".txt", ".model", ".jinja"}
_DOC_SUFFIXES: Final = {".md", ".pdf", ".rst"}
_BLOCK_BYTES: Final = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedModel:
    """An artifact: its manifest and the sources of its blobs by digest."""

    manifest: bytes
    media_type: str
    blobs: Mapping[Digest, BlobSource]

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of all blobs, the config's included."""
        return sum(source.size for source in self.blobs.values())

    def serve(self, registry: ModelRegistry, repository: str, *tags: str) -> Digest:
        """Puts the artifact into `registry`; returns the manifest's digest."""
        for digest, source in self.blobs.items():
            registry.add_blob(source, digest=digest)
        return registry.add_manifest(repository, self.manifest, media_type=self.media_type, tags=tags)


def pack_model(
    directory: Path,
    *,
    name: str = "model",
    encoding: Encoding = "raw",
    legacy: bool = False,
    created: datetime | None = None,
) -> PackedModel:
    """One layer a file, in the order of modctl: configs, weights, code, documents, each by path.

    `legacy` writes the media types and annotations of `vnd.cnai.model` (modctl 0.1).
    """
    vendor = "cnai" if legacy else "cncf"
    blobs: dict[Digest, BlobSource] = {}
    layers: list[dict[str, Any]] = []
    paths = [path for path in directory.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (_ORDER.index(_kind(path)), path.relative_to(directory).as_posix())):
        relative = path.relative_to(directory).as_posix()
        source: BlobSource = FileSource(path)
        if encoding == "tar":
            source = _tar(path, relative)
        digest = digest_of(source)
        blobs[digest] = source
        layers.append(
            {
                "mediaType": f"application/vnd.{vendor}.model.{_kind(path)}.v1.{encoding}",
                "digest": str(digest),
                "size": source.size,
                "annotations": {
                    f"org.{vendor}.model.filepath": relative,
                    f"org.{vendor}.model.file.metadata+json": json.dumps(_metadata(path, relative)),
                },
            }
        )
    config = _config(name, layers, created or datetime.now(UTC))
    blobs[Digest.of(config)] = BytesSource(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": f"application/vnd.{vendor}.model.manifest.v1+json",
        "config": {
            "mediaType": f"application/vnd.{vendor}.model.config.v1+json",
            "digest": str(Digest.of(config)),
            "size": len(config),
        },
        "layers": layers,
    }
    return PackedModel(manifest=json.dumps(manifest, indent=2).encode(), media_type=MANIFEST_TYPE, blobs=blobs)


_ORDER: Final = ("weight.config", "weight", "code", "doc")


def _kind(path: Path) -> str:
    """By name, as modctl does (pkg/modelfile/constants.go)."""
    suffix = path.suffix.lower()
    if suffix in _WEIGHT_SUFFIXES:
        return "weight"
    if suffix in _DOC_SUFFIXES or path.name.upper().startswith(("LICENSE", "README")):
        return "doc"
    return "weight.config" if suffix in _CONFIG_SUFFIXES else "code"


def _metadata(path: Path, relative: str) -> dict[str, Any]:
    status = path.stat()
    modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
    return {
        "name": relative,
        "mode": status.st_mode & 0o777,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "mtime": modified.isoformat().replace("+00:00", "Z"),
        "typeflag": 0,
    }


def _tar(path: Path, relative: str) -> BlobSource:
    """A one-file archive as Go's writer makes it: padded to 512 bytes and two empty blocks at the end, no blocking factor."""
    status = path.stat()
    member = tarfile.TarInfo(relative)
    member.size = status.st_size
    member.mode = status.st_mode & 0o777
    member.mtime = int(status.st_mtime)
    header = member.tobuf(tarfile.PAX_FORMAT)
    padding = -status.st_size % _BLOCK_BYTES + 2 * _BLOCK_BYTES
    return JoinedSource((BytesSource(header), FileSource(path), BytesSource(bytes(padding))))


def _config(name: str, layers: list[dict[str, Any]], created: datetime) -> bytes:
    config = {
        "descriptor": {"name": name, "createdAt": created.isoformat().replace("+00:00", "Z")},
        "config": {},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }
    return json.dumps(config).encode()
