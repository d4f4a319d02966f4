"""When a load begins with a file: what is then worth having of it before anybody asks.

A loader that opens a safetensors file reads its header, which may be longer than what is fetched of every file. One that has
come further reads tensors, and will want the rest of this file before it wants another. Where it reads first says little about
where it goes on: a tensor is copied by memcpy(3), which touches its end before its beginning, and an archive says at its end what
is in it. So the file is wanted in its own order, and what is read next is for streams to see.

Called on READs, from several threads under one lock. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fuse.filesystem.table import Table
from fuse.prefetch.hints import HEADER_LENGTH_BYTES, safetensors_header_bytes
from fuse.prefetch.order import BLOCK_BYTES, Range, file_blocks, is_large
from fuse.prefetch.streams import FIRST_WINDOW_BYTES

_UNSEEN: Final = 0
_OPENED: Final = 1
_BEGUN: Final = 2


class Beginnings:
    """Which files of one mount a load has begun with. A byte a file."""

    def __init__(self, table: Table) -> None:
        self._nodes = table.nodes
        self._states = bytearray(len(table.nodes) + 1)

    def is_news(self, ino: int, offset: int) -> bool:
        """Whether a READ there says anything that is not known: for most of them it does not."""
        state = self._states[ino]
        return state < _BEGUN and (offset >= FIRST_WINDOW_BYTES or state == _UNSEEN)

    def header(self, ino: int, offset: int, beginning: Callable[[int], bytes | bytearray | None]) -> Range | None:
        """What of the file's header lies behind its first block, once. `beginning`: so many of its bytes, if they are there."""
        if offset or self._states[ino] != _UNSEEN:
            return None
        node = self._nodes[ino - 1]
        if not is_large(node) or not node.name.lower().endswith(".safetensors"):
            self._states[ino] = _OPENED
            return None
        content = beginning(HEADER_LENGTH_BYTES)
        if content is None:
            return None
        self._states[ino] = _OPENED
        first = node.offset // BLOCK_BYTES
        end = (node.offset + safetensors_header_bytes(content, node.size) - 1) // BLOCK_BYTES + 1
        return Range(node.blob, first + 1, end - first - 1) if end > first + 1 else None

    def data(self, ino: int, offset: int) -> Range | None:
        """The whole file, once somebody reads more of it than its beginning.

        What the kernel reads ahead of a header is within the first window of a stream.
        """
        if offset < FIRST_WINDOW_BYTES or self._states[ino] == _BEGUN:
            return None
        self._states[ino] = _BEGUN
        node = self._nodes[ino - 1]
        if not is_large(node):
            return None
        first, end = file_blocks(node)
        return Range(node.blob, first, end - first)
