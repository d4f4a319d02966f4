"""Reads the indexes of a mounted model, and has the background planned by what they say.

Only where everything is prefetched: indexes are fetched first then anyway, and this one reader waits for them, as any reader
would. What cannot be read says nothing: the order by names stands. With `verify: strict` an index that is held back until the
whole of it is proven is not waited for. On trio's thread.
"""

from __future__ import annotations

import structlog
import trio

from fuse.errors import WeightlessError
from fuse.filesystem.tree import Tree
from fuse.prefetch import hints, order
from fuse.worker.reader import Content, Reader
from fuse.worker.session_client import FetchSession

_log = structlog.get_logger()


class Hinting:
    """`named` is what the plan of `session` goes by. `wanted` is set when there is one."""

    def __init__(self, tree: Tree, reader: Reader, session: FetchSession) -> None:
        self._tree = tree
        self._reader = reader
        self._session = session
        self.named: frozenset[int] = frozenset()
        """Inode numbers of the files that indexes name."""
        self.wanted = trio.Event()

    async def run(self) -> None:
        await self.wanted.wait()
        table = self._tree.table
        for index in hints.indexes(table):
            extent = self._tree.extent(index)
            if self._session.blobs[extent.blob].strict:
                continue
            try:
                content = await self._content(index, extent.size)
            except WeightlessError as error:
                _log.info("index_unread", path=self._tree.path(index), kind=error.kind)
                continue
            before, self.named = self.named, self.named | hints.named(table, index, content)
            if [*order.ranges(table, (), before)] != [*order.ranges(table, (), self.named)]:
                self._session.plan_anew()

    async def _content(self, ino: int, size: int) -> bytes:
        parts: list[Content] = []
        await self._reader.read_later(ino, 0, size, lambda *found: parts.extend(found))
        return b"".join(parts)
