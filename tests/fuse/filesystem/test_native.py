"""Which trees the kernel can show alone."""

from __future__ import annotations

import pytest

from fuse.filesystem.native import MAX_COPIED_BYTES, MAX_NODES, copied, fits
from fuse.filesystem.table import Blob, Node, Table

MIB = 1 << 20
ROOT = Node(1, "", "d", 0o555, 0)


def table(*nodes: Node) -> Table:
    return Table(artifacts=(), blobs=(Blob("sha256:a", 100 * MIB, ""), Blob("sha256:b", 0, "")), nodes=(ROOT, *nodes))


WHOLE = Node(1, "whole", "f", 0o444, 0, 100 * MIB, 0, 0)
EMPTY = Node(1, "empty", "f", 0o444, 0)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (table(), True),
        (table(WHOLE, EMPTY), True),
        (table(WHOLE, Node(1, "twice", "f", 0o400, 9, 100 * MIB, 0, 0)), True),
        (table(Node(1, "dir", "d", 0o555, 0), Node(1, "link", "l", 0o777, 0, target="x" * 4000)), True),
        (table(Node(1, "end", "f", 0o444, 0, MAX_COPIED_BYTES, 0, 100 * MIB - MAX_COPIED_BYTES)), True),
        (table(Node(1, "end", "f", 0o444, 0, MAX_COPIED_BYTES + 1, 0, 0)), False),
        (table(*(Node(1, f"part-{n}", "f", 0o444, 0, MIB, 0, n * MIB) for n in range(9))), False),
        (table(*(Node(1, f"{n}", "f", 0o444, 0) for n in range(MAX_NODES))), False),
    ],
)
def test_whole_blobs_fit_and_few_bytes_of_others(tree: Table, expected: bool) -> None:
    assert expected == fits(tree)


def test_only_what_is_no_whole_blob_is_copied() -> None:
    part = Node(1, "part", "f", 0o444, 0, 5, 0, 0)
    assert [part] == list(copied(table(WHOLE, part, EMPTY)))
