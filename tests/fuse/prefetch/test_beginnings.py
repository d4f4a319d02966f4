"""A load that begins with a file: its long header, and the rest of it from where it is read, once each."""

from __future__ import annotations

from fuse.filesystem.table import Blob, Node, Table
from fuse.prefetch.beginnings import Beginnings
from fuse.prefetch.order import Range
from fuse.prefetch.streams import FIRST_WINDOW_BYTES, MIB

SHARD, GGUF, SMALL, IN_TAR = 2, 3, 4, 5
BEYOND = FIRST_WINDOW_BYTES
ROOT = Node(parent=1, name="", kind="d", mode=0o555, mtime_ns=0)


def file(name: str, blob: int, size: int, offset: int = 0) -> Node:
    return Node(parent=1, name=name, kind="f", mode=0o444, mtime_ns=0, size=size, blob=blob, offset=offset)


def beginnings() -> Beginnings:
    nodes = (
        ROOT,
        file("a.safetensors", 0, 100 * MIB),
        file("b.gguf", 1, 100 * MIB),
        file("c.safetensors", 2, MIB),
        file("d.safetensors", 3, 50 * MIB, offset=10 * MIB + 512),
    )
    return Beginnings(Table(artifacts=(), blobs=tuple(Blob("", 200 * MIB, "") for _ in range(4)), nodes=nodes))


def header(length: int):
    return lambda count: length.to_bytes(8, "little")[:count]


def test_a_long_header_is_known_at_the_first_look_at_it() -> None:
    """What lies behind the first block, which is fetched of every shard; once."""
    found = beginnings()

    assert Range(0, 1, 2) == found.header(SHARD, 0, header(2 * MIB))
    assert found.header(SHARD, 0, header(2 * MIB)) is None
    assert not found.is_news(SHARD, 0)


def test_a_header_is_where_its_file_lies() -> None:
    """A member of a tar begins within a block."""
    assert beginnings().header(IN_TAR, 0, header(2 * MIB - 8)) == Range(3, 11, 2)
    assert beginnings().header(IN_TAR, 0, header(1000)) is None


def test_nothing_is_made_of_what_is_no_header() -> None:
    """A short header, an impossible one, another format, a small file, a read elsewhere."""
    found = beginnings()

    assert found.header(SHARD, MIB, header(2 * MIB)) is None
    assert found.header(SHARD, 0, header(1 << 62)) is None
    assert found.header(GGUF, 0, header(2 * MIB)) is None
    assert found.header(SMALL, 0, header(2 * MIB)) is None


def test_a_header_that_is_not_there_yet_is_looked_at_later() -> None:
    """The first read of a block that is absent learns nothing."""
    found = beginnings()

    assert found.header(SHARD, 0, lambda _: None) is None
    assert found.is_news(SHARD, 0)
    assert found.header(SHARD, 0, header(2 * MIB)) is not None


def test_a_file_that_is_read_beyond_its_beginning_is_wanted_whole() -> None:
    """In its own order, once, wherever it is read first and next."""
    found = beginnings()

    assert found.is_news(SHARD, 40 * MIB)
    assert found.data(SHARD, 40 * MIB) == Range(0, 0, 100)
    assert not found.is_news(SHARD, 70 * MIB)
    assert found.data(SHARD, 70 * MIB) is None
    assert found.data(IN_TAR, BEYOND) == Range(3, 10, 51)


def test_who_reads_a_header_wants_no_file() -> None:
    """What the kernel reads ahead of it lies within the first window; small files come early anyway."""
    found = beginnings()

    assert found.data(SHARD, BEYOND - 1) is None
    assert found.data(GGUF, 0) is None
    assert found.is_news(SHARD, BEYOND)
    small = Table(artifacts=(), blobs=(Blob("", MIB, ""),), nodes=(ROOT, file("x", 0, MIB)))
    assert Beginnings(small).data(2, BEYOND) is None
