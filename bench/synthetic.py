"""Artifacts of any size whose bytes are computed while they are served."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fuse.artifact.digest import Digest
from weightless.demo.registry import ModelRegistry
from weightless.demo.sources import SyntheticSource

CONFIG = json.dumps({"model_type": "synthetic", "hidden_size": 4096}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticModel:
    repository: str
    shards: tuple[SyntheticSource, ...]

    @property
    def size(self) -> int:
        return sum(shard.size for shard in self.shards)

    def name(self, shard: int) -> str:
        return f"model-{shard + 1:05}-of-{len(self.shards):05}.safetensors"


def serve(registry: ModelRegistry, repository: str, size: int, *, shards: int = 20) -> SyntheticModel:
    """A model of `shards` weight files and one config.json, tagged v1."""
    model = SyntheticModel(
        repository=repository, shards=tuple(SyntheticSource(size // shards, seed=seed) for seed in range(shards))
    )
    layers = [_layer("weight.config", "config.json", registry.add_blob(CONFIG), len(CONFIG))]
    for number, source in enumerate(model.shards):
        # Nobody can hash a terabyte in the time of a benchmark, and none of these blobs is ever read to its end.
        digest = Digest("sha256", hashlib.sha256(f"{repository} {number}".encode()).hexdigest())
        registry.add_blob(source, digest=digest)
        layers.append(_layer("weight", model.name(number), digest, source.size))
    config = b"{}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": str(registry.add_blob(config)),
            "size": len(config),
        },
        "layers": layers,
    }
    registry.add_manifest(repository, json.dumps(manifest).encode(), tags=("v1",))
    return model


def _layer(kind: str, path: str, digest: Digest, size: int) -> dict[str, object]:
    return {
        "mediaType": f"application/vnd.cncf.model.{kind}.v1.raw",
        "digest": str(digest),
        "size": size,
        "annotations": {"org.cncf.model.filepath": path},
    }
