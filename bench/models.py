"""Models whose bytes lie on the disk: safetensors files of 32 MiB tensors, random bytes that nobody can compress."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuse.artifact.digest import Digest
from weightless.demo.pack import Encoding, PackedModel, pack_model
from weightless.demo.sources import FileSource

TENSOR_BYTES: Final = 32 * 1024 * 1024
_PIECE_BYTES: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    directory: Path
    shards: tuple[str, ...]
    tensors: int
    """In each shard; `tensor_name` tells their names."""
    packed: PackedModel

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.below(self.directory)

    @property
    def size(self) -> int:
        """Of all shards."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Of the shards' blobs, in the order of the shards."""
        blobs = self.packed.blobs.items()
        known = {source.path.name: digest for digest, source in blobs if isinstance(source, FileSource)}
        return tuple(known[name] for name in self.shards)

    def below(self, directory: Path) -> tuple[Path, ...]:
        """The shards where somebody else has them."""
        return tuple(directory / name for name in self.shards)


def write(directory: Path, *, shards: int = 1, tensors: int, encoding: Encoding = "raw") -> Model:
    """A model of `shards` files with `tensors` tensors each, packed; on the disk, so that no writeback disturbs what follows.

    `encoding`: whether a layer is a file, or a tar with one file in it.
    """
    directory.mkdir()
    names = tuple(f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards))
    # Random bytes once, repeated: making gigabytes of them takes long.
    piece = os.urandom(_PIECE_BYTES)
    for number, name in enumerate(names):
        with (directory / name).open("wb") as file:
            file.write(_header(number, tensors))
            left = tensors * TENSOR_BYTES
            while left:
                left -= file.write(piece[:left])
            file.flush()
            os.fsync(file.fileno())
    return Model(directory=directory, shards=names, tensors=tensors, packed=pack_model(directory, encoding=encoding))


def tensor_name(shard: int, number: int) -> str:
    return f"layers.{shard}.{number:03}.weight"


def _header(shard: int, tensors: int) -> bytes:
    described = {
        tensor_name(shard, number): {
            "dtype": "F32",
            "shape": [TENSOR_BYTES // 4096, 1024],
            "data_offsets": [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES],
        }
        for number in range(tensors)
    }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
