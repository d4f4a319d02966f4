"""What the files of a model say about the order in which a loader will read it.

Two things are looked at, and both are a stranger's: an index (`model.safetensors.index.json`), which names the shards that a
loader opens, and the first eight bytes of a safetensors file, which tell how long its header is. Neither is trusted for anything
but order, so that a wrong one costs speed and nothing else.

An index is searched, not parsed: one of 16 MiB can have two million entries, and what is asked of it is only which of the files
beside it it names. That takes one pass, no recursion, and memory for names of files that exist. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fuse.filesystem.table import Node, Table

INDEX_SUFFIX: Final = ".index.json"
MAX_INDEX_BYTES: Final = 16 * 1024 * 1024
"""The index of 90,000 tensors (a mixture of many experts) has 9 MB."""
MAX_INDEXES: Final = 16
"""Of one mount: a pipeline of several models has one each."""
MAX_HEADER_BYTES: Final = 100_000_000
"""As the safetensors library allows."""
HEADER_LENGTH_BYTES: Final = 8
_PIECE_BYTES: Final = 1024 * 1024
_LONGEST_NAME: Final = 255
_STRING: Final = re.compile(rb'"([^"\\\x00-\x1f]{1,%d})(?=")' % _LONGEST_NAME)
"""From any quote to the next one, which is not consumed: a piece may begin in the middle of a string."""


def is_index(node: Node) -> bool:
    """Whether a file may say which shards a loader opens."""
    return (
        node.kind == "f"
        and node.blob >= 0
        and 0 < node.size <= MAX_INDEX_BYTES
        and node.name.lower().endswith(INDEX_SUFFIX)
    )


def indexes(table: Table) -> list[int]:
    """The inode numbers of the indexes of a mount, the first few of them."""
    found = (ino for ino, node in enumerate(table.nodes, 1) if is_index(node))
    return [ino for ino, _ in zip(found, range(MAX_INDEXES), strict=False)]


def named(table: Table, index: int, content: bytes) -> frozenset[int]:
    """The inode numbers of the files that an index names (`index` is its own); those in its directory count."""
    directory = table.nodes[index - 1].parent
    beside = {
        node.name.encode(): ino
        for ino, node in enumerate(table.nodes, 1)
        if node.kind == "f" and node.parent == directory and ino != index
    }
    return frozenset(_found(content, beside))


def safetensors_header_bytes(beginning: bytes | bytearray, size: int) -> int:
    """How long the header of a safetensors file of `size` bytes is, with its own length; 0 if this is none."""
    if len(beginning) < HEADER_LENGTH_BYTES:
        return 0
    length = HEADER_LENGTH_BYTES + int.from_bytes(beginning[:HEADER_LENGTH_BYTES], "little")
    return length if length <= min(size, MAX_HEADER_BYTES) else 0


def _found(content: bytes, beside: Mapping[bytes, int]) -> Iterable[int]:
    found: set[int] = set()
    for piece in _pieces(content):
        for match in _STRING.finditer(piece):
            ino = beside.get(match[1])
            if ino is not None:
                found.add(ino)
    return found


def _pieces(content: bytes) -> Iterator[memoryview]:
    """In pieces, so that other threads have the interpreter in between; they overlap by more than a name."""
    whole = memoryview(content)
    for start in range(0, len(content), _PIECE_BYTES):
        yield whole[start : start + _PIECE_BYTES + _LONGEST_NAME + 2]
