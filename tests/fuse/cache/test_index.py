"""The block index against a model: a list of entries."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.artifact.digest import Digest
from fuse.cache import index
from fuse.cache.index import BLOCK_BYTES, IndexReader, IndexWriter, block_length, blocks_of
from fuse.errors import Corrupt

DIGEST = Digest.of(b"a blob")


def made(path: Path, size: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    index.create(fd, DIGEST, size)
    return fd


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("publish", "forget", "publish unrecorded", "restart")),
        st.integers(0, 299),
        st.integers(1, 150),
    ),
    max_size=12,
)


def followed(writer: IndexWriter) -> IndexReader:
    """A reader's view, as another process gets it."""
    fd = writer.reader_fd()
    try:
        return IndexReader(fd)
    finally:
        os.close(fd)


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(0, 300),
    last=st.integers(1, BLOCK_BYTES),
    operations=OPERATIONS,
    asked=st.tuples(st.integers(0, 299), st.integers(0, 300)),
)
def test_a_reader_sees_what_was_published_and_a_restart_what_was_recorded(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: int,
    last: int,
    operations: list[tuple[str, int, int]],
    asked: tuple[int, int],
) -> None:
    """Presence, gaps and byte counts agree with two plain lists, one in memory and one on disk, whatever is done and dies."""
    size = (blocks - 1) * BLOCK_BYTES + last if blocks else 0
    fd = made(tmp_path_factory.mktemp("i") / "x", size)
    writer = IndexWriter(fd)
    reader = followed(writer)
    model, disk = [0] * blocks, [0] * blocks
    for operation, first, count in operations:
        if operation == "restart":
            reader.close()
            writer.close()
            writer = IndexWriter(fd)
            reader = followed(writer)
            model = list(disk)
            continue
        for block in range(first, min(first + count, blocks)):
            entry = 0 if operation == "forget" else index.entry_of(bytes([block % 251]))
            if operation != "publish unrecorded":
                writer.record(block, entry)
                disk[block] = entry
            model[block] = entry
            if entry:
                writer.publish(block, entry)
                continue
            missing_nothing = all([*model[:block], 1, *model[block + 1 :]])
            writer.forget(block)
            if missing_nothing:
                # Who opened it when it was whole has a copy, and finds out by the checksum.
                reader.close()
                reader = followed(writer)
    first, count = min(asked[0], blocks), asked[1]
    end = min(first + count, blocks)
    expected_missing = [block for block in range(first, end) if not model[block]]

    assert [reader[block] for block in range(blocks)] == model
    assert [b for start, n in reader.missing(first, count) for b in range(start, start + n)] == expected_missing
    assert reader.has(first, end - first) == all(model[first:end])
    assert reader.count_present() == sum(entry != 0 for entry in model)
    assert reader.bytes_present() == sum(block_length(size, block) for block in range(blocks) if model[block])
    assert reader.first_absent(first, end) == next((b for b in range(first, end) if not model[b]), max(first, end))
    assert reader.first_present(first, end) == next((b for b in range(first, end) if model[b]), max(first, end))
    reader.close()
    writer.close()
    os.close(fd)


@given(offset=st.integers(0, 10 * BLOCK_BYTES), length=st.integers(0, 5 * BLOCK_BYTES))
def test_blocks_of_a_range_cover_it_and_no_more(offset: int, length: int) -> None:
    """The first and last of the blocks each hold a byte of the range."""
    first, count = blocks_of(offset, length)
    touched = {position // BLOCK_BYTES for position in (offset, offset + max(length - 1, 0))} if length else set()

    assert (count == 0) == (length == 0)
    assert not touched or (min(touched), max(touched)) == (first, first + count - 1)


def test_flags_are_seen_by_other_maps(tmp_path: Path) -> None:
    """Flags set by the writer are flags of every reader."""
    fd = made(tmp_path / "x", BLOCK_BYTES)
    writer = IndexWriter(fd)
    os.close(fd)
    reader = followed(writer)
    writer.set_flags(index.COMPLETE | index.VERIFIED)
    writer.clear_flags(index.VERIFIED)

    assert reader.flags == index.COMPLETE
    assert (reader.digest, reader.size) == (DIGEST, BLOCK_BYTES)
    reader.close()
    writer.close()


@pytest.mark.parametrize("damage", ["empty", "zeros", "header", "short", "version"])
def test_a_damaged_index_is_refused(tmp_path: Path, damage: str) -> None:
    """What a power loss or another program left is no index, and is never mapped beyond its end."""
    path = tmp_path / "x"
    os.close(made(path, 10 * BLOCK_BYTES))
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "zeros":
        content = bytearray(len(content))
    elif damage == "header":
        content[20] ^= 1
    elif damage == "version":
        content[8] = 9
    else:
        del content[-8:]
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(Corrupt):
            IndexReader(fd)
    finally:
        os.close(fd)


def test_a_file_that_vanishes_under_a_reader_is_no_signal(tmp_path: Path) -> None:
    """The index file is cut to nothing while writer and reader look at it: both go on, where a map of it would be SIGBUS."""
    path = tmp_path / "x"
    fd = made(path, 600 * BLOCK_BYTES)
    writer = IndexWriter(fd)
    reader = followed(writer)
    os.truncate(path, 0)
    writer.publish(599, index.entry_of(b"late"))

    assert reader.missing(598, 2)
    assert reader.has(599)
    for block in range(600):
        writer.publish(block, 1)
    assert reader.count_present() == 600
    reader.close()
    writer.close()
    os.close(fd)


def test_the_file_of_an_earlier_versions_fetcher_is_followed(tmp_path: Path) -> None:
    """That one shares the file itself: what it stores into its map of it is seen, as before."""
    fd = made(tmp_path / "x", 3 * BLOCK_BYTES)
    reader = IndexReader(fd)
    with mmap.mmap(fd, index.index_bytes(3 * BLOCK_BYTES), access=mmap.ACCESS_WRITE) as theirs:
        theirs[index.HEADER_BYTES + 8 : index.HEADER_BYTES + 16] = (index.entry_of(b"x")).to_bytes(8, "little")

    assert reader.missing(0, 3)
    assert (reader.has(0), reader.has(1)) == (False, True)
    reader.close()
    os.close(fd)


@pytest.mark.parametrize("full", [False, True])
def test_a_reader_cannot_change_the_index(tmp_path: Path, full: bool) -> None:
    """Neither through its descriptor, nor by a map of it."""
    fd = made(tmp_path / "x", 2 * BLOCK_BYTES)
    if full:
        os.pwrite(fd, b"\1" * 16, index.HEADER_BYTES)
    writer = IndexWriter(fd)
    os.close(fd)
    theirs = writer.reader_fd()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(theirs, b"x")
    with pytest.raises(PermissionError):
        mmap.mmap(theirs, 4096, access=mmap.ACCESS_WRITE)
    os.close(theirs)
    writer.close()


def test_an_index_takes_all_its_space_at_once(tmp_path: Path) -> None:
    """No entry can find the disk full later."""
    fd = made(tmp_path / "x", 1 << 40)
    status = os.fstat(fd)
    os.close(fd)

    assert status.st_blocks * 512 >= status.st_size == index.index_bytes(1 << 40)


def test_no_room_for_an_index_is_an_error_not_a_signal(tmp_path: Path) -> None:
    """Creating an index where there is no room raises OSError."""
    code = (
        "import os, resource, signal, sys\n"
        "from fuse.artifact.digest import Digest\nfrom fuse.cache import index\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "try:\n    index.create(fd, Digest.of(b'x'), 1 << 40)\n"
        "except OSError as error:\n    sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False)

    assert done.returncode == errno.EFBIG
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536


def test_marks_outlive_the_process_and_fit_one_entry_only(tmp_path: Path) -> None:
    """What was proven is known after a restart, until another version writes another entry; old readers see no difference."""
    size, proof = 300 * BLOCK_BYTES, 0x1234
    entry, other = index.entry_of(b"proven"), index.entry_of(b"another")
    fd = made(tmp_path / "x", size)
    writer = IndexWriter(fd)
    writer.open_marks()
    for block in (0, 299):
        writer.record(block, entry)
        writer.record_mark(block, entry, proof)
        writer.publish(block, entry)
        writer.mark(block, proof)
    assert writer.is_marked(0, proof)
    assert not writer.is_marked(1, proof)
    writer.close()
    later = IndexWriter(fd)  # knows no marks
    later.record(299, other)
    later.publish(299, other)
    later.close()
    writer = IndexWriter(fd)
    assert not writer.is_marked(0, proof)
    writer.open_marks()
    reader = followed(writer)

    assert [writer.is_marked(block, proof) for block in (0, 1, 299)] == [True, False, False]
    assert not writer.is_marked(0, proof + 1)
    assert [reader[block] for block in (0, 1, 299)] == [entry, 0, other]
    reader.close()
    writer.close()
    os.close(fd)


def test_no_room_for_marks_leaves_the_index_as_it_is(tmp_path: Path) -> None:
    """A disk that has no room for marks is an OSError; the index goes on without."""
    fd = made(tmp_path / "x", 3 * BLOCK_BYTES)
    writer = IndexWriter(fd)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            writer.open_marks()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    writer.publish(1, index.entry_of(b"x"))
    writer.mark(1, 7)
    writer.record_mark(1, writer[1], 7)

    assert (writer.has(1), writer.is_marked(1, 7), writer.has_marks) == (True, False, False)
    writer.close()
    os.close(fd)


@pytest.mark.parametrize("flags", [0, index.VERIFIED])
def test_who_follows_a_whole_blob_sees_it_verified_and_lost(tmp_path: Path, flags: int) -> None:
    """Unverified always, and verified where that was asked for: else a strict reader would wait for ever, or not at all."""
    fd = made(tmp_path / "x", 2 * BLOCK_BYTES)
    os.pwrite(fd, b"\1" * 16, index.HEADER_BYTES)
    os.pwrite(fd, bytes([flags]), 512)
    writer = IndexWriter(fd)
    if flags:
        writer.share()
    reader = followed(writer)
    assert reader.flags == index.COMPLETE | flags
    writer.set_flags(index.VERIFIED)
    assert reader.flags == index.COMPLETE | index.VERIFIED
    writer.forget(1)
    writer.clear_flags(index.COMPLETE | index.VERIFIED)

    assert (reader.flags, reader.has(0), reader.has(1)) == (0, True, False)
    reader.close()
    writer.close()
    os.close(fd)
