"""Which blocks of a blob are in a cache directory: reads the block index beside the fetcher that writes it."""

from __future__ import annotations

import os
from pathlib import Path

from fuse.artifact.digest import Digest
from fuse.cache.index import IndexReader, block_count


def blocks_present(cache_dir: Path, digest: Digest, size: int) -> list[bool]:
    """One entry a block; nothing is there of a blob that the cache does not know."""
    # Named as `fuse.cache.store` says; opening the store itself would be the writer's right.
    path = cache_dir / "blobs" / digest.algorithm / f"{digest.hex}.{size}.index"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return [False] * block_count(size)
    try:
        index = IndexReader(fd)
    finally:
        os.close(fd)
    try:
        return [index.has(block) for block in range(index.blocks)]
    finally:
        index.close()
