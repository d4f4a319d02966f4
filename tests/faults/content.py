"""What the fault suite mounts: artifacts whose every byte is computed from a number, so that any process can check any range.

Readers, registry and test share nothing but the few numbers of a `Model`. No two words of a file are equal: a range that is
shifted, torn, stale, or another file's is seen. Pure.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from fuse.artifact.digest import Digest
from weightless.demo.pack import PackedModel
from weightless.demo.registry import MANIFEST_TYPE
from weightless.demo.sources import BlobSource, BytesSource, digest_of

MIB: Final = 1024 * 1024
_ODD: Final = 0x9E3779B97F4A7C15
"""Multiplying by an odd number is one to one: no two words of a file are equal."""


class WordSource:
    """`size` bytes in words of eight; word n is (n + 1) * _ODD + `key`, modulo 2**64."""

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._key = np.uint64(key)

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // 8, -(-(offset + length) // 8)
        words = np.arange(first + 1, last + 1, dtype=np.uint64)
        words *= np.uint64(_ODD)
        words += self._key
        skip = offset - first * 8
        return words.astype("<u8").tobytes()[skip : skip + length]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file, which is one blob."""

    path: str
    source: WordSource
    warm: bool
    """Read once by the test before anything happens: later reads of it need no registry."""

    @property
    def size(self) -> int:
        return self.source.size


@dataclass(frozen=True, kw_only=True)
class Model:
    """Small files, and `shards` weight files of together about `mebibytes`, every second of them warm if `warm`."""

    seed: int
    mebibytes: int = 32
    shards: int = 4
    warm: bool = True

    @classmethod
    def from_json(cls, text: str) -> Model:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @cached_property
    def files(self) -> tuple[File, ...]:
        sizes = {"config.json": 1777, "tokenizer/vocab.txt": 700_001, "tokenizer/merges.txt": MIB}
        # Sizes around the edges of blocks: one byte less, none, one more …
        share = max(5, self.mebibytes // max(1, self.shards))
        for number in range(self.shards):
            sizes[f"weights/model-{number:05}.safetensors"] = share * MIB + (number % 3 - 1) * (1 + 4095 * (number % 2))
        return tuple(
            File(
                path=path,
                source=WordSource(size, _key(self.seed, path)),
                warm=self.warm and (not path.startswith("weights/") or number % 2 == 0),
            )
            for number, (path, size) in enumerate(sizes.items())
        )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def digests(self) -> dict[str, Digest]:
        """By path. Hashes everything: a second a gigabyte."""
        return {file.path: digest_of(file.source) for file in self.files}

    @cached_property
    def packed(self) -> PackedModel:
        """As a ModelPack of raw layers."""
        blobs: dict[Digest, BlobSource] = {}
        layers: list[dict[str, Any]] = []
        for file in self.files:
            digest = self.digests[file.path]
            blobs[digest] = file.source
            kind = "weight" if file.path.startswith("weights/") else "weight.config"
            layers.append(
                {
                    "mediaType": f"application/vnd.cncf.model.{kind}.v1.raw",
                    "digest": str(digest),
                    "size": file.size,
                    "annotations": {"org.cncf.model.filepath": file.path},
                }
            )
        config = json.dumps({"descriptor": {"name": f"model-{self.seed}"}}).encode()
        blobs[Digest.of(config)] = BytesSource(config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.cncf.model.config.v1+json",
                "digest": str(Digest.of(config)),
                "size": len(config),
            },
            "layers": layers,
        }
        return PackedModel(manifest=json.dumps(manifest).encode(), media_type=MANIFEST_TYPE, blobs=blobs)


def _key(seed: int, path: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {path}".encode()).digest()[:8], "little")
