"""Which blocks of a blob are in a cache directory: reads the block index beside the fetcher that writes it."""

from __future__ import annotations

import os
from pathlib import Path

from fuse.cache.index import IndexReader, block_count
from fuse.cache.keys import BlobKey, paths


def blocks_present(cache_dir: Path, key: BlobKey) -> list[bool]:
    """One entry a block; nothing is there of a blob that the cache does not know."""
    try:
        # Opening the store itself would be the writer's right.
        fd = os.open(paths(cache_dir, key)[1], os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return [False] * block_count(key.size)
    try:
        index = IndexReader(fd, follow=False)
    finally:
        os.close(fd)
    try:
        return [index.has(block) for block in range(index.blocks)]
    finally:
        index.close()
