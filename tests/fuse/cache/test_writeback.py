"""Fresh blocks reach the disk soon, without anybody asking for it."""

from __future__ import annotations

import os
from pathlib import Path

from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.cache.writeback import MOST_WAITING, Writeback
from tests.support.pages import pages
from tests.support.waiting import until

CONTENT = os.urandom(BLOCK_BYTES)


def test_block_that_was_written_becomes_clean(tmp_path: Path) -> None:
    """Its pages can be dropped long before the kernel would have written them by itself (30 s)."""
    store = CacheStore(tmp_path)
    writer = store.open(BlobKey(Digest.of(CONTENT), len(CONTENT), scope_of("registry.example")))
    writer.write(0, memoryview(CONTENT))
    until(lambda: (found := pages(writer.fd)).cached and not found.dirty + found.writeback, "clean pages")
    os.posix_fadvise(writer.fd, 0, len(CONTENT), os.POSIX_FADV_DONTNEED)
    assert pages(writer.fd).cached == 0
    writer.close()


def test_more_than_can_be_followed_is_left_to_the_kernel(tmp_path: Path) -> None:
    """Who writes never waits, and what waits is bounded; descriptors that are closed do no harm."""
    writeback = Writeback()
    for number in range(4 * MOST_WAITING):
        writeback.begin(1_000_000 + number, 0, 10)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(CONTENT)
        writeback.begin(file.fileno(), 0, len(CONTENT))
        until(lambda: not (found := pages(file.fileno())).dirty + found.writeback, "clean pages")
    assert len(writeback._ranges) <= MOST_WAITING
