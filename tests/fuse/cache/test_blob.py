"""Reading a cached blob while it fills."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.artifact.digest import Digest
from fuse.cache import index
from fuse.cache.blob import CachedBlob
from fuse.cache.index import BLOCK_BYTES, COMPLETE, REJECTED, VERIFIED, block_length, entry_of
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.cache.writer import BlobWriter
from fuse.errors import Corrupt
from tests.support.fetcher import pattern

SIZE = 5 * BLOCK_BYTES + 777
CONTENT = pattern(SIZE)
KEY = BlobKey(Digest.of(CONTENT), SIZE, scope_of("registry.example/m"))


def put(writer: BlobWriter, *blocks: int) -> None:
    for block in blocks:
        content = memoryview(CONTENT)[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        writer.write(block, content)
        writer.record(block, entry_of(content))
        writer.index.publish(block, entry_of(content))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[BlobWriter]:
    writer = CacheStore(tmp_path).open(KEY)
    yield writer
    writer.close()


@pytest.fixture
def blob(writer: BlobWriter) -> Iterator[CachedBlob]:
    blob = CachedBlob(*writer.reader_fds())
    yield blob
    blob.close()


def test_blocks_appear_as_they_are_published(writer: BlobWriter, blob: CachedBlob) -> None:
    """A reader that was open before sees a block the moment it is published, with its bytes."""
    assert not blob.has(5)
    put(writer, 5, 1)

    assert blob.has(5)
    assert blob.missing(0, 6) == [(0, 1), (2, 3)]
    assert blob.check(5)
    assert blob.read(5 * BLOCK_BYTES, BLOCK_BYTES) == CONTENT[5 * BLOCK_BYTES :]
    assert blob.read(BLOCK_BYTES + 3, 10) == CONTENT[BLOCK_BYTES + 3 : BLOCK_BYTES + 13]


def test_what_is_withheld_is_not_there_before_the_whole_is_verified(writer: BlobWriter, blob: CachedBlob) -> None:
    """For a strict reader, presence alone means nothing."""
    blob.withheld = True
    put(writer, 0, 5)
    assert not blob.has(0)
    writer.index.set_flags(index.COMPLETE)
    assert not blob.has(0)
    writer.index.set_flags(index.VERIFIED)

    assert blob.has(0)


def test_a_torn_block_is_found_at_its_first_use(writer: BlobWriter, blob: CachedBlob) -> None:
    """An entry whose data did not reach the disk does not pass for a block."""
    put(writer, 0, 5)
    os.pwrite(writer.fd, bytes(4096), 8192)
    os.pwrite(writer.fd, b"\xfe", SIZE - 1)

    assert not blob.check(0)
    assert not blob.check(5)
    assert not blob.is_checked(0)


def test_blocks_are_compared_each_time_until_the_whole_is_on_the_disk(writer: BlobWriter, blob: CachedBlob) -> None:
    """Also those that were seen to arrive, and compared before: the disk may lose them yet, and nobody says when."""
    put(writer, 0, 1)
    blob.note_arrived(0, 2)
    assert blob.check(0)
    assert not blob.is_checked(0)
    os.pwrite(writer.fd, bytes(BLOCK_BYTES), 0)  # what a lost write leaves

    assert not blob.check(0)
    assert blob.read_block(0) is None
    assert blob.read_block(1) == CONTENT[BLOCK_BYTES : 2 * BLOCK_BYTES]


def test_verified_blocks_are_compared_once(writer: BlobWriter, blob: CachedBlob) -> None:
    """At their first use, unless they were seen to arrive; `doubt` brings it back."""
    put(writer, *range(6))
    writer.index.set_flags(COMPLETE | VERIFIED)
    blob.note_arrived(0, 2)
    assert blob.is_checked(0, 2)
    assert not blob.is_checked(1, 2)
    assert blob.check(2)
    assert blob.is_checked(0, 3)
    blob.doubt(0)
    assert not blob.is_checked(0)
    os.pwrite(writer.fd, b"\xff", 0)
    assert not blob.check(0)


def test_an_absent_block_never_passes_the_check(blob: CachedBlob) -> None:
    """A hole reads as zeros, and is not taken for data."""
    assert not blob.check(2)


def test_reads_are_cut_at_the_end(writer: BlobWriter, blob: CachedBlob) -> None:
    """Nothing is read beyond the blob, whatever is asked."""
    put(writer, *range(6))

    assert blob.read(SIZE - 5, 100) == CONTENT[-5:]
    assert blob.read(SIZE, 1) == b""
    assert blob.read(SIZE + 5, 1) == b""
    assert blob.blocks_of(SIZE - 1, 100) == (5, 1)
    assert blob.blocks_of(SIZE, 100)[1] == 0


def test_a_read_without_waiting_gives_all_or_nothing(writer: BlobWriter, blob: CachedBlob) -> None:
    """Bytes in the page cache come at once, complete; else None."""
    put(writer, *range(6))
    got = blob.try_read_nowait(100, 2 * BLOCK_BYTES)

    assert got is None or bytes(got) == CONTENT[100 : 100 + 2 * BLOCK_BYTES]
    blob.drop_pages(0, SIZE)
    again = blob.try_read_nowait(SIZE - block_length(SIZE, 5), BLOCK_BYTES)
    assert again is None or bytes(again) == CONTENT[5 * BLOCK_BYTES :]


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_disk_that_fails_is_found_out_by_who_can_wait(
    writer: BlobWriter, blob: CachedBlob, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The quick way says no, as for bytes that are not in memory: only the patient one reports the failure, and repairs it."""
    put(writer, 0)

    def fails(*_: object) -> int:
        raise OSError(code, "as the test says")

    monkeypatch.setattr(os, "preadv", fails)
    assert not blob.try_readinto_nowait(bytearray(10), 0)
    assert blob.try_read_nowait(0, 10) is None
    monkeypatch.undo()
    assert blob.read(0, 10) == CONTENT[:10]


def test_flags_show(writer: BlobWriter, blob: CachedBlob) -> None:
    """Complete, verified and rejected are seen by readers that were open before."""
    assert (blob.complete, blob.verified, blob.rejected) == (False, False, False)
    writer.index.set_flags(COMPLETE | VERIFIED | REJECTED)

    assert (blob.complete, blob.verified, blob.rejected) == (True, True, True)


def test_readers_cannot_write(writer: BlobWriter) -> None:
    """The descriptors that a worker gets do not let it change the cache."""
    data, index = writer.reader_fds()
    try:
        for fd in (data, index):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
    finally:
        os.close(data)
        os.close(index)


def test_files_that_do_not_belong_together_are_refused(writer: BlobWriter) -> None:
    """Data shorter than its index is no blob; both descriptors are closed."""
    data, index = writer.reader_fds()
    os.truncate(writer.fd, 10)
    with pytest.raises(Corrupt):
        CachedBlob(data, index)
    for fd in (data, index):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_bytes_that_were_read_before_a_block_was_mended_are_not_taken_for_it(
    writer: BlobWriter, blob: CachedBlob
) -> None:
    """Another reader had it fetched anew meanwhile: the block is good, what this one holds is not."""
    put(writer, *range(6))
    writer.index.set_flags(COMPLETE | VERIFIED)
    damaged = bytes(BLOCK_BYTES)
    blob.note_arrived(1)

    assert blob.is_checked(1)
    assert not blob.check_content(1, damaged)
