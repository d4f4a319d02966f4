"""A peer-to-peer proxy before a registry, for tests: what Dragonfly's dfdaemon says, and the ways in which it can lie.

More words for scripts of blobs, besides those of `FaultyRegistry`:

    proxy=403 dfdaemon=500 backend=502 …   that status, and whose fault it is
    partial         200 and the range that was asked for, as before dragonflyoss/client #1874
    partial-range   the same, with Content-Range
    chunked         the same, in chunks: nothing says how much comes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.support.registry import FaultyRegistry
from weightless.demo.registry import Request, Response


class Peer(FaultyRegistry):
    def _faulty(self, fault: str, request: Request, response: Response) -> Response:
        whose, _, status = fault.partition("=")
        if status:
            return Response.error(int(status), "FAULT", "as the script says", {"X-Dragonfly-Error-Type": whose})
        if fault in ("partial", "partial-range", "chunked"):
            assert response.status == 206
            response.status = 200
            if fault != "partial-range":
                del response.headers["Content-Range"]
            if fault == "chunked":
                response.headers["Transfer-Encoding"] = "chunked"
                response.pieces = _chunked(response.pieces)
            return response
        return super()._faulty(fault, request, response)

    def priorities(self) -> list[str]:
        """Of the requests for blobs, in the order in which they came."""
        return [entry.request.headers.get("x-dragonfly-priority", "") for entry in self.requests("blob")]


def _chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
