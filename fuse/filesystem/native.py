"""Which trees the kernel can show without a process of ours: those whose files begin where a file of the cache does.

Files that are whole blobs do. A few small ones are copied into memory for each mount. The rest, large members of archives, lie in
the middle of a blob: the kernel can show them once each is a file of its own in the cache (`fuse.cache.copies`). Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

from fuse.filesystem.table import Node, Table

MAX_NODES: Final = 20_000
"""Each becomes an inode in the kernel's memory (about 1 KiB), made one by one when the volume is published."""
MAX_INLINE_BYTES: Final = 8 * 1024 * 1024
"""Of files that are parts of blobs: they are copied into that memory."""
MAX_NAMED: Final = 1000
"""Blobs, and sections, of which each counts twice: each is looked at when the volume is published, and all are named in one
message (`fuse.fetch.protocol.Whole`)."""


class Section(NamedTuple):
    """A part of a blob that is a file, or several of the same content (hard links)."""

    blob: int
    """Index into the table's blobs."""
    offset: int
    size: int


def sections(table: Table) -> tuple[Section, ...] | None:
    """What has to be a file of its own before the kernel can show the tree, in the order in which it lies in its blobs.

    Empty where nothing has to. None for a tree that is not to be shown so: with too many files, blobs, or such parts.
    """
    if len(table.nodes) > MAX_NODES:
        return None
    files = Counter(section_of(node) for node in parts(table))
    found: list[Section] = []
    inline_bytes = 0
    for section, names in sorted(files.items(), key=lambda item: (item[0].size, item[0])):
        inline_bytes += section.size * names
        if inline_bytes > MAX_INLINE_BYTES:
            found.append(section)
    return tuple(sorted(found)) if len(table.blobs) + 2 * len(found) <= MAX_NAMED else None


def parts(table: Table) -> Iterator[Node]:
    """The files that are not a whole blob."""
    return (node for node in table.nodes if node.kind == "f" and node.size and not is_whole(table, node))


def is_whole(table: Table, node: Node) -> bool:
    """Whether the file is a blob from its first to its last byte."""
    return node.blob >= 0 and node.offset == 0 and node.size == table.blobs[node.blob].size


def section_of(node: Node) -> Section:
    return Section(node.blob, node.offset, node.size)


def inline_bytes(table: Table, copies: Container[Section]) -> int:
    """How much of memory the files take that are neither whole blobs nor among `copies`."""
    return sum(node.size for node in parts(table) if section_of(node) not in copies)
