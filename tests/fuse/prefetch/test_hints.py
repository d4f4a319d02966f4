"""What an index and a header say about order: searched, bounded, and never trusted for anything else."""

from __future__ import annotations

import json

import pytest

from fuse.filesystem.table import Blob, Node, Table
from fuse.prefetch import hints

ROOT = Node(parent=1, name="", kind="d", mode=0o555, mtime_ns=0)


def file(name: str, parent: int = 1, size: int = 100, blob: int = 0, kind: str = "f") -> Node:
    return Node(parent=parent, name=name, kind=kind, mode=0o444, mtime_ns=0, size=size, blob=blob)  # type: ignore[arg-type]


def table(*nodes: Node) -> Table:
    return Table(artifacts=(), blobs=(Blob("sha256:0", 1 << 40, ""),), nodes=(ROOT, *nodes))


INDEX, ONE, TWO, OTHER, DIRECTORY, ELSEWHERE = 2, 3, 4, 5, 6, 7
MODEL = table(
    file("model.safetensors.index.json"),
    file("model-00001-of-00002.safetensors"),
    file("model-00002-of-00002.safetensors"),
    file("consolidated.safetensors"),
    Node(parent=1, name="sub", kind="d", mode=0o555, mtime_ns=0),
    file("model-00001-of-00002.safetensors", parent=6),
)


def index_of(shards: list[str], **options: object) -> bytes:
    found = {
        "metadata": {"total_size": 1},
        "weight_map": {f"layer.{at}.weight": name for at, name in enumerate(shards)},
    }
    return json.dumps(found, **options).encode()  # type: ignore[arg-type]


SHARDS = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_an_index_names_the_shards_beside_it(options: dict[str, object]) -> None:
    """However it is written; not the file of the same name in another directory, nor what nobody has."""
    content = index_of([*SHARDS, "gone.safetensors"], **options)

    assert {ONE, TWO} == hints.named(MODEL, INDEX, content)


def test_a_name_is_found_wherever_a_piece_ends() -> None:
    """A large index is looked at in pieces: a name may lie across two, and a piece may begin within a string."""
    for at in range(0, 270, 9):
        content = b'{"' + b"x" * (hints._PIECE_BYTES - 270 + at) + b'":"' + SHARDS[0].encode() + b'","a":"b"}'

        assert {TWO} == hints.named(MODEL, INDEX, content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"weight_map":' * 50_000,
        b'"' * 100_000,
        b'"' + b"x" * 3_000_000,
        b"\xff\xfe" * 1000,
        b"model-00001-of-00002.safetensors",
    ],
)
def test_what_is_no_index_names_nothing(content: bytes) -> None:
    """Deep, endless, no text: no error either, and no time."""
    assert frozenset() == hints.named(MODEL, INDEX, content)


def test_only_files_of_a_bounded_size_are_indexes_and_few_of_them() -> None:
    """By name, in any directory; not an empty file, a directory or a huge one."""
    found = table(
        file("a.safetensors.index.json"),
        file("b.index.json", size=0, blob=-1),
        file("c.index.json", size=hints.MAX_INDEX_BYTES + 1),
        file("d.index.json", kind="d"),
        file("pytorch_model.bin.INDEX.json", parent=5, size=hints.MAX_INDEX_BYTES),
        file("config.json"),
    )

    assert [2, 6] == hints.indexes(found)
    assert hints.MAX_INDEXES == len(hints.indexes(table(*(file(f"{at}.index.json") for at in range(100)))))


@pytest.mark.parametrize(
    ("beginning", "size", "expected"),
    [
        ((1000).to_bytes(8, "little"), 1 << 30, 1008),
        ((1000).to_bytes(8, "little"), 1007, 0),
        ((100_000_001).to_bytes(8, "little"), 1 << 40, 0),
        (b"\xff" * 8, 1 << 40, 0),
        (b"short", 1 << 40, 0),
        (b"", 0, 0),
    ],
)
def test_a_header_is_as_long_as_it_says_if_that_can_be(beginning: bytes, size: int, expected: int) -> None:
    """Within the file, and within what the safetensors library reads."""
    assert expected == hints.safetensors_header_bytes(beginning, size)
