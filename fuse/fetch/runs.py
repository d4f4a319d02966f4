"""The words of the queue: what somebody wishes, and what one lane fetches of that. Changed under the lock of the queue."""

from __future__ import annotations

from collections.abc import Hashable
from enum import IntEnum
from typing import Final, Generic, Protocol, TypeVar


class Priority(IntEnum):
    DEMAND = 0
    READAHEAD = 1
    BACKGROUND = 2


class Blocks(Hashable, Protocol):
    """A blob, as the queue sees it."""

    @property
    def blocks(self) -> int: ...

    @property
    def registry(self) -> Hashable:
        """Stands for where it comes from: registries share the lanes."""
        ...

    @property
    def indivisible(self) -> bool:
        """Whether it is only fetched as a whole (it is verified before its first block is served)."""
        ...

    @property
    def grain(self) -> int:
        """Runs cover whole multiples of so many blocks. 1, or a divisor of ALIGNED; may change at any time."""
        ...

    def first_absent(self, first: int, end: int) -> int: ...

    def first_present(self, first: int, end: int) -> int: ...


B = TypeVar("B", bound=Blocks)


class Wish(Generic[B]):
    """Blocks [first, end) of a blob that somebody wants."""

    __slots__ = ("blob", "end", "first", "owner", "priority")

    def __init__(self, owner: Hashable, blob: B, first: int, end: int, priority: Priority) -> None:
        self.owner = owner
        self.blob = blob
        self.first = first
        self.end = end
        self.priority = priority


class Run(Generic[B]):
    """Blocks [next, end) that one lane is fetching. `end` may shrink while it does.

    Only the queue changes the fields, but for those that the dispatcher and the lane note of its way (`at_s`, `reading`,
    `resting`, `waiting_bytes`).
    """

    __slots__ = (
        "at_s",
        "blob",
        "end",
        "first",
        "next",
        "owner",
        "parked",
        "priority",
        "reading",
        "resting",
        "urgent",
        "urgent_lane",
        "waiting_bytes",
        "whole",
    )

    def __init__(self, owner: Hashable, blob: B, first: int, end: int, priority: Priority) -> None:
        self.owner = owner
        self.blob = blob
        self.first = first
        self.next = first
        self.end = end
        self.priority = priority
        self.urgent = priority is Priority.DEMAND
        """A reader waits for one of its blocks."""
        self.urgent_lane = False
        """It is carried by a lane for urgent work."""
        self.whole = False
        """It streams the blob from its start, as the server knows no ranges: it covers every block until it ends."""
        self.at_s = 0.0
        """When its last block came, or it began: the dispatcher's clock."""
        self.reading = False
        """There is an answer: its lane is at the next block."""
        self.resting = False
        """Its lane leaves the link to readers: the socket's buffer is full or will be, and then nothing more comes."""
        self.waiting_bytes: int | None = None
        """What of the next block was there before the lane came for it; None: that says nothing of the link."""
        self.parked: list[Wish[B]] = []

    def covers(self, block: int) -> bool:
        # An indivisible blob is covered until the run ends, also while its blocks are handed out one by one: a second run
        # would stop where this one stands, and ask for a part of what is only good as a whole.
        return self.whole or self.blob.indivisible or self.next <= block < self.end

    def __repr__(self) -> str:
        return f"<Run {self.first}:{self.next}:{self.end} {self.priority.name}>"


def up(block: int, grain: int) -> int:
    """The next multiple of `grain`."""
    return -(-block // grain) * grain


NOBODY: Final = object()
"""Owns the runs whose owner has gone."""
