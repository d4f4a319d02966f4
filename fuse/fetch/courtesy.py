"""When the background leaves the link to readers, and when it need not.

A reader that reads on asks for a block, handles it, asks for the next: a background that only rests while a request of the reader
is under way takes the link between two of them, and what it has asked for goes on coming. So the link is the readers' from the
beginning of a request until some time after its last block, as long as that block took: whoever reads one block after another
keeps it, whoever reads one now and then does not. The background starts nothing meanwhile but a trickle, rests, and leaves
the requests that have long to go: the connection has to be closed for that, and what was on its way is lost. So leaving them
has to be earned by what has come (`may_leave`).

None of that where the link brings more than this process takes from it: there the processor is short, and what the
background has fetched is what makes a mapped load fast (measured: 598 MB/s, 399 with it at rest). What tells is whether bytes
wait for a lane that comes for its next block, or the lane for them (measured: on a link of 200 MB/s never a byte, on loopback
2 MiB). Nothing is known at first, and that is taken for a slow link. Pure, on the caller's monotonic clock; knows no run.
"""

from __future__ import annotations

from typing import Final

ANSWER_S: Final = 0.1
"""How long a reader's request keeps the link before its first byte: a registry that hangs does not keep it for ever."""
LINGER_MOST_S: Final = 0.05
LINGER_LEAST_S: Final = 0.002
_LINGER: Final = 2.0
"""In times that the last block took."""
BEHIND_BYTES: Final = 512 * 1024
"""So much in the socket's buffer says that the lane is late, not the link."""
_SMOOTHED_BLOCKS: Final = 16
LEAVES: Final = 6
"""How many requests may be left at first, and at most at once."""
BLOCKS_A_LEAVE: Final = 256
"""What has to come for each of them: a request that is left loses what the socket's buffers hold, a few blocks."""


class Courtesy:
    def __init__(self) -> None:
        self._answer_until_s = 0.0
        self._linger_until_s = 0.0
        self._leaves = float(LEAVES)
        self._behind = 0.0
        """The part of the last blocks that waited for their lanes."""

    @property
    def is_needed(self) -> bool:
        """Whether the link is what readers and the background share, not the processor."""
        return self._behind < 0.5

    def until_s(self, now_s: float) -> float:
        """Until when, as it looks now, the link is the readers'; 0.0: it is not."""
        until_s = max(self._answer_until_s, self._linger_until_s)
        return until_s if until_s > now_s and self.is_needed else 0.0

    def asked(self, now_s: float) -> None:
        """A request for a reader, or for what is ahead of one, is sent."""
        self._answer_until_s = now_s + ANSWER_S

    def served(self, now_s: float, took_s: float) -> None:
        """A block of such a request has come, so long after the one before."""
        linger_s = min(LINGER_MOST_S, max(LINGER_LEAST_S, _LINGER * took_s))
        self._linger_until_s = max(self._linger_until_s, now_s + linger_s)
        self._answer_until_s = 0.0

    def came(self, waiting_bytes: int | None) -> None:
        """A block of any request has come. `waiting_bytes`: what of it was there before its lane came for it; None: that says
        nothing, for the lane has just asked, or had left it waiting."""
        if waiting_bytes is not None:
            self._behind += ((waiting_bytes >= BEHIND_BYTES) - self._behind) / _SMOOTHED_BLOCKS
        self._leaves = min(LEAVES, self._leaves + 1 / BLOCKS_A_LEAVE)

    def may_leave(self) -> bool:
        """Whether one more request may be left before its end; if so it counts as left."""
        if self._leaves < 1:
            return False
        self._leaves -= 1
        return True
