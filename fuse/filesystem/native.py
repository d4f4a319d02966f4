"""Which trees the kernel can show without a process of ours: those whose files are whole blobs, but for a few small ones.

Pure. The rest, large members of a tar, lies in the middle of a blob, where no file begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fuse.filesystem.table import Node, Table

MAX_NODES: Final = 20_000
"""Each becomes an inode in the kernel's memory (about 1 KiB), made one by one when the volume is published."""
MAX_COPIED_BYTES: Final = 8 * 1024 * 1024
"""Of files that are parts of blobs: they are copied into that memory."""


def fits(table: Table) -> bool:
    """Whether every file is a whole blob, or one of few bytes that can be copied."""
    return len(table.nodes) <= MAX_NODES and sum(node.size for node in copied(table)) <= MAX_COPIED_BYTES


def copied(table: Table) -> Iterator[Node]:
    """The files that are not a whole blob."""
    return (node for node in table.nodes if node.kind == "f" and node.size and not is_whole(table, node))


def is_whole(table: Table, node: Node) -> bool:
    """Whether the file is a blob from its first to its last byte."""
    return node.blob >= 0 and node.offset == 0 and node.size == table.blobs[node.blob].size
