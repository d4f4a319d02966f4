"""One range of one blob on its way from a registry: what was promised is checked before the first byte is given out.

A stream belongs to one thread, except `abort`. It verifies no digest: a range has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from fuse.errors import Corrupt, Unavailable, WeightlessError
from fuse.registry.ranges import RangeReply

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class BlobStream:
    """An open body. `start` is the offset in the blob of the first byte that `readinto` gives, `length` how many follow.

    They may differ from what was asked for: a server that ignores Range sends the whole blob from 0, and one may send fewer
    bytes than asked. `source` is the host that sends, for logs; `endpoint` the URL of the configured host that was asked, and
    `origin` whether that is the registry itself.
    """

    def __init__(
        self,
        reply: RangeReply,
        *,
        start: int,
        length: int,
        source: str,
        endpoint: str,
        origin: bool,
        where: str,
        failed: Callable[[], None],
    ) -> None:
        self._reply = reply
        self._left = length
        self._where = where
        self._failed = failed
        self.start = start
        self.length = length
        self.source = source
        self.endpoint = endpoint
        self.origin = origin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def readinto(self, view: memoryview) -> int:
        """Fills `view` (or what is left, if that is less) and returns the number of bytes; 0 at the end.

        Raises Unavailable when no byte comes for 5 s or the body ends too early. What was read by that call is lost then;
        a body that breaks off is first given out as far as it came.
        """
        if not self._left:
            return 0
        try:
            count = self._reply.readinto(view[: self._left])
        except Unavailable as error:
            self._failed()
            raise error.again(where=f"{self._where} from {self.source}") from error
        if not count and view:
            self._failed()
            raise Unavailable("the connection was closed early", where=f"{self._where} from {self.source}")
        self._left -= count
        return count

    def waiting_bytes(self) -> int:
        """How many bytes the socket holds that were not read yet (under TLS as they came over the wire)."""
        return self._reply.waiting_bytes()

    def abort(self) -> None:
        """Makes a blocked `readinto` raise Unavailable. May be called from any thread while the stream is open."""
        self._reply.abort()

    def close(self) -> None:
        """The connection is used again if the body was read to its end."""
        self._reply.close()


def promised(
    reply: RangeReply, size: int, first: int, length: int, where: str, *, mirror: bool = False
) -> tuple[int, int]:
    """Start and length of the body of a 200 or 206, checked against what was asked for.

    `mirror`: the administrator put it before the registry, so a 200 may also be the range that was asked for. Dragonfly's proxy
    answers so before client v1.3.11 (dragonflyoss/client, #1874). Anybody else's 200 is the whole blob, or wrong.
    Raises Unavailable for an answer that breaks HTTP (another server may do better), Corrupt when the blob's size is not `size`.
    """
    if reply.header("Content-Encoding").strip().lower() not in ("", "identity"):
        raise Unavailable("the server sends compressed bytes where identity was asked for", where=where)
    if reply.status == 206 or (mirror and reply.header("Content-Range")):
        start, count = _of_range(reply, size, first, length, where)
    else:
        start, count = 0, size
        announced = reply.content_length
        if announced is not None and announced == length != size:
            if mirror:
                return first, length
            raise Unavailable("the server answers 200 to a range, with fewer bytes than the whole blob", where=where)
        if announced is None and mirror and length != size:
            raise Unavailable("the mirror answers 200 to a range, and does not say with how many bytes", where=where)
        if announced is not None and announced != size:
            raise _wrong_size(announced, size, where)
    if reply.content_length not in (None, count):
        raise Unavailable("Content-Length contradicts Content-Range", where=where)
    return start, count


def _of_range(reply: RangeReply, size: int, first: int, length: int, where: str) -> tuple[int, int]:
    match = _CONTENT_RANGE.fullmatch(reply.header("Content-Range").strip())
    if match is None:
        raise Unavailable("the server sends a part without saying which", where=where)
    start, last = int(match[1]), int(match[2])
    if match[3] != "*" and int(match[3]) != size:
        raise _wrong_size(int(match[3]), size, where)
    if start != first or not start <= last < first + length:
        raise Unavailable(
            f"the server sends bytes {start}-{last} where {first}-{first + length - 1} were asked for", where=where
        )
    return start, last - start + 1


def _wrong_size(found: int, size: int, where: str) -> WeightlessError:
    return Corrupt(f"the blob has {found} bytes, the manifest says {size}", where=where, fix="push the artifact again")
