"""The block index against a model: a list of entries."""

from __future__ import annotations

import errno
import os
import resource
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


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(0, 300),
    last=st.integers(1, BLOCK_BYTES),
    runs=st.lists(st.tuples(st.booleans(), st.integers(0, 299), st.integers(1, 150)), max_size=12),
    asked=st.tuples(st.integers(0, 299), st.integers(0, 300)),
)
def test_a_reader_sees_exactly_what_the_writer_published(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: int,
    last: int,
    runs: list[tuple[bool, int, int]],
    asked: tuple[int, int],
) -> None:
    """Presence, gaps and byte counts agree with a plain list after any publishing and forgetting."""
    size = (blocks - 1) * BLOCK_BYTES + last if blocks else 0
    fd = made(tmp_path_factory.mktemp("i") / "x", size)
    writer, reader = IndexWriter(fd), IndexReader(fd)
    os.close(fd)
    model = [False] * blocks
    for publish, first, count in runs:
        for block in range(first, min(first + count, blocks)):
            model[block] = publish
            if publish:
                writer.publish(block, index.entry_of(bytes([block % 251])))
            else:
                writer.forget(block)
    first, count = min(asked[0], blocks), asked[1]
    end = min(first + count, blocks)
    expected_missing = [block for block in range(first, end) if not model[block]]

    assert [b for start, n in reader.missing(first, count) for b in range(start, start + n)] == expected_missing
    assert reader.has(first, end - first) == all(model[first:end])
    assert reader.count_present() == sum(model)
    assert reader.bytes_present() == sum(block_length(size, block) for block in range(blocks) if model[block])
    assert reader.first_absent(first, end) == next((b for b in range(first, end) if not model[b]), max(first, end))
    assert reader.first_present(first, end) == next((b for b in range(first, end) if model[b]), max(first, end))
    reader.close()
    writer.close()


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
    writer, reader = IndexWriter(fd), IndexReader(fd)
    os.close(fd)
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


def test_an_index_takes_all_its_space_at_once(tmp_path: Path) -> None:
    """No store into the map can find the disk full: that would be a SIGBUS."""
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
