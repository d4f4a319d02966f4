"""How many bytes a second the lanes read: of the node as a whole and of single registries, readers first.

A lane draws on the buckets before it reads a block from its socket; while it waits the kernel's buffers fill, and TCP holds the
registry back. A bucket is in debt for one draw at most, and the next draw is the most urgent lane's: so a reader waits for one
block of the background (or one small blob, drawn at once: 4 MiB), however many lanes are in the way. Equal lanes take turns.

`Turns` is the pure part, on the caller's clock and under its lock; `Bandwidth` waits. Thread-safe.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from fuse.bucket import Bucket
from fuse.fetch.blobs import BlobState
from fuse.fetch.runs import Priority, Run

_BURST_S: Final = 0.125
"""What may be caught up of time in which nobody drew: threads wake up late, and the rate is meant to be reached."""
_LOOK_S: Final = 0.5
"""How long at most a lane sleeps before it looks whether it has become urgent."""


class Turn:
    """One lane's place in the line."""

    __slots__ = ("buckets", "number", "rank")

    def __init__(self, number: int, rank: Callable[[], int], buckets: tuple[Bucket, ...]) -> None:
        self.number = number
        self.rank = rank
        """The lower, the sooner; asked anew each time, since a reader may have come to wait for it."""
        self.buckets = buckets


class Turns:
    def __init__(self, bytes_per_s: float, registries: Mapping[Hashable, float], now_s: float) -> None:
        """`bytes_per_s`: all together, 0 for no limit; `registries`: those that have a limit of their own."""

        def bucket(rate: float) -> Bucket:
            return Bucket(rate, rate * _BURST_S, now_s)

        self._all = (bucket(bytes_per_s),) if bytes_per_s else ()
        self._own = {registry: (bucket(rate),) for registry, rate in registries.items() if rate}
        self._waiting: dict[int, Turn] = {}
        self._last = 0

    def limits(self, registry: Hashable) -> bool:
        """Whether what comes from there is limited. Constant."""
        return bool(self._all) or registry in self._own

    def join(self, registry: Hashable, rank: Callable[[], int]) -> Turn:
        self._last += 1
        turn = Turn(self._last, rank, self._all + self._own.get(registry, ()))
        self._waiting[turn.number] = turn
        return turn

    def wait_s(self, turn: Turn, now_s: float) -> float:
        """0: it may draw now; infinite: when another one has, which could draw now."""
        wait_s = _wait_s(turn, now_s)
        if wait_s:
            return wait_s
        place = (turn.rank(), turn.number)
        sooner = any(
            (other.rank(), other.number) < place and not _wait_s(other, now_s) for other in self._waiting.values()
        )
        return math.inf if sooner else 0.0

    def draw(self, turn: Turn, amount: int, now_s: float) -> None:
        for bucket in turn.buckets:
            bucket.draw(amount, now_s)

    def leave(self, turn: Turn) -> None:
        del self._waiting[turn.number]


class Bandwidth:
    def __init__(
        self,
        bytes_per_s: float,
        registries: Mapping[Hashable, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As `Turns`; registries are named as blobs name them (`BlobState.registry`)."""
        self._clock = clock
        self._turns = Turns(bytes_per_s, registries, clock())
        self._news = threading.Condition()
        self._closed = False

    def draw(self, run: Run[BlobState], amount: int) -> None:
        """Returns when `amount` more bytes of the run may be read."""
        if not self._turns.limits(run.blob.registry):
            return
        with self._news:
            turn = self._turns.join(run.blob.registry, lambda: Priority.DEMAND if run.urgent else run.priority)
            while not self._closed and (wait_s := self._turns.wait_s(turn, self._clock())):
                self._news.wait(min(wait_s, _LOOK_S))
            self._turns.draw(turn, amount, self._clock())
            self._turns.leave(turn)
            self._news.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._news:
            self._closed = True
            self._news.notify_all()


def _wait_s(turn: Turn, now_s: float) -> float:
    return max((bucket.wait_s(now_s) for bucket in turn.buckets), default=0.0)
