"""When a load is over, and what of it is worth telling the fetcher: the worker's part in learning the order of an artifact.

A load has no end that anybody announces. It counts as over when nothing new has been touched for a few seconds, and in any case
when the worker ends. Between loads nothing runs: files are opened before they are read, and that is what wakes the task. On
trio's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from fuse.artifact.profile import Runs
from fuse.prefetch.touches import Touches

QUIET_S: Final = 5.0
"""Loaders pause: between shards, while a device is being set up. A load that goes on after it was told is told again."""
LOOKS: Final = 5
"""In that time: so much later than that it may be told."""
LEAST_BLOCKS: Final = 16
"""Of what reads less, a directory listing or a look at a header, nobody's order is to be made."""


class Learning:
    def __init__(self, touches: Touches, tell: Callable[[Runs], bool]) -> None:
        """`tell`: whether it could be told."""
        self._touches = touches
        self._tell = tell
        self._told = 0
        """Blocks that had been touched when it was told last."""
        self._opened = trio.Event()

    def opened(self) -> None:
        """A file is being opened."""
        self._opened.set()

    def untold(self) -> Runs:
        """The load, if it is worth telling and has not been told."""
        if self._touches.blocks < LEAST_BLOCKS or self._touches.blocks == self._told:
            return ()
        return self._touches.runs()

    async def run(self) -> None:
        while True:
            await self._opened.wait()
            self._opened = trio.Event()
            seen, quiet_since = self._touches.blocks, trio.current_time()
            while trio.current_time() - quiet_since < QUIET_S:
                await trio.sleep(QUIET_S / LOOKS)
                if seen != self._touches.blocks:
                    seen, quiet_since = self._touches.blocks, trio.current_time()
            if (runs := self.untold()) and self._tell(runs):
                self._told = seen
