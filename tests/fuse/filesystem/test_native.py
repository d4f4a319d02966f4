"""Which trees the kernel can show alone, and what has to become a file for that."""

from __future__ import annotations

import pytest

from fuse.filesystem.native import MAX_INLINE_BYTES, MAX_NAMED, MAX_NODES, Section, inline_bytes, parts, sections
from fuse.filesystem.table import Blob, Node, Table

MIB = 1 << 20
GIB = 1 << 30
ROOT = Node(1, "", "d", 0o555, 0)


def table(*nodes: Node) -> Table:
    blobs = (Blob("sha256:a", 100 * MIB, ""), Blob("sha256:b", 0, ""), Blob("sha256:c", 1000 * GIB, ""))
    return Table(artifacts=(), blobs=blobs, nodes=(ROOT, *nodes))


def part(name: str, size: int, offset: int = 0, blob: int = 0) -> Node:
    return Node(1, name, "f", 0o444, 0, size, blob, offset)


WHOLE = Node(1, "whole", "f", 0o444, 0, 100 * MIB, 0, 0)
EMPTY = Node(1, "empty", "f", 0o444, 0)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (table(), ()),
        (table(WHOLE, EMPTY), ()),
        (table(WHOLE, Node(1, "twice", "f", 0o400, 9, 100 * MIB, 0, 0)), ()),
        (table(Node(1, "dir", "d", 0o555, 0), Node(1, "link", "l", 0o777, 0, target="x" * 4000)), ()),
        (table(part("end", MAX_INLINE_BYTES, 100 * MIB - MAX_INLINE_BYTES)), ()),
        (table(part("end", MAX_INLINE_BYTES + 1)), (Section(0, 0, MAX_INLINE_BYTES + 1),)),
        (table(*(part(f"part-{n}", MIB, n * MIB) for n in range(9))), (Section(0, 8 * MIB, MIB),)),
        (table(*(Node(1, f"{n}", "f", 0o444, 0) for n in range(MAX_NODES))), None),
    ],
)
def test_whole_blobs_fit_and_few_bytes_of_others(tree: Table, expected: tuple[Section, ...] | None) -> None:
    assert expected == sections(tree)


def test_the_large_ones_are_to_be_files_in_their_order() -> None:
    """Small ones are never: there may be many of them."""
    small = [part(f"small-{n}", 1000, n * 1024) for n in range(50)]
    tree = table(part("last", 20 * MIB, 70 * MIB), part("other", 9 * MIB, 5, 2), part("first", 30 * MIB, MIB), *small)
    expected = (Section(0, MIB, 30 * MIB), Section(0, 70 * MIB, 20 * MIB), Section(2, 5, 9 * MIB))
    assert expected == sections(tree)
    assert 50_000 == inline_bytes(tree, expected)
    assert 50_000 + 59 * MIB == inline_bytes(tree, ())


def test_hard_links_are_one_file_and_count_in_memory_each() -> None:
    """A copy is shared by its names, while what is put into memory is there once a name."""
    links = [part(f"link-{n}", 5 * MIB, 512) for n in range(2)]
    assert (Section(0, 512, 5 * MIB),) == sections(table(*links))
    assert () == sections(table(links[0]))


def test_an_archive_of_too_many_large_files_is_left_alone() -> None:
    fit = (MAX_NAMED - len(table().blobs)) // 2
    many = [part(f"{n}", 9 * MIB, n * GIB, 2) for n in range(fit + 1)]
    assert sections(table(*many)) is None
    assert fit == len(sections(table(*many[1:])) or ())


def test_only_what_is_no_whole_blob_is_a_part() -> None:
    one = part("part", 5)
    assert [one] == list(parts(table(WHOLE, one, EMPTY)))
