"""What a worker knows of one blob: its files, what it was refused, whether it may be served.

Changed on trio's thread; `borrow` and `give_back` may be called from any. Who borrows the files may read them until it gives them
back, whatever replaces them meanwhile. Knows no fetcher, which says all this (`fuse.worker.session_client`).
"""

from __future__ import annotations

import threading

import trio

from fuse.cache.blob import CachedBlob
from fuse.errors import WeightlessError


class BlobState:
    __slots__ = (
        "_retired",
        "_settled",
        "_users",
        "asked",
        "cached",
        "error",
        "identity",
        "index",
        "lends",
        "opened",
        "proven",
        "refusal",
        "strict",
        "uncached",
        "whole",
        "whole_asked_at",
        "whole_error",
    )

    def __init__(self, index: int, settled: threading.Condition, *, strict: bool) -> None:
        """`settled` guards the borrowing of all blobs of a session. `strict`: nothing is served of it before it is proven."""
        self.index = index
        self.strict = strict
        self.proven = False
        """The fetcher says that all of it that comes is."""
        self.whole: trio.Event | None = None
        """Somebody waits for the whole to be verified; set by any answer."""
        self.whole_error: WeightlessError | None = None
        self.whole_asked_at = 0.0
        self.cached: CachedBlob | None = None
        self.uncached = False
        """The fetcher has no room for it: every block comes as a loan."""
        self.lends = False
        """A block came as a loan since the files were opened: the cache may take no others either."""
        self.error: WeightlessError | None = None
        """Set once it is quarantined: nothing of it is served any more."""
        self.asked = False
        self.opened = trio.Event()
        """Set by any answer to `Open`."""
        self.refusal: WeightlessError | None = None
        """The answer, if it was that."""
        self.identity: tuple[object, ...] = ()
        self._settled = settled
        self._users = 0
        self._retired: list[CachedBlob] = []

    def borrow(self) -> CachedBlob | None:
        """The files of the moment, open until `give_back`; without any, nothing is to be given back."""
        with self._settled:
            if self.cached is not None:
                self._users += 1
            return self.cached

    def give_back(self) -> None:
        with self._settled:
            self._users -= 1
            if not self._users and self._retired:
                self._close_retired()

    def replace(self, cached: CachedBlob | None) -> None:
        with self._settled:
            if self.cached is not None:
                self._retired.append(self.cached)
            self.cached = cached
            if not self._users:
                self._close_retired()

    def wait_settled(self) -> None:
        """Blocks until nobody reads files that have been replaced; for a thread."""
        with self._settled:
            self._settled.wait_for(lambda: not self._retired)

    def _close_retired(self) -> None:
        while self._retired:
            self._retired.pop().close()
        self._settled.notify_all()
