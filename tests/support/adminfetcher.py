"""A fetcher for tests of the mounting side: the whole administration protocol, one invented artifact, and faults on request.

A program, started as the real one is. What it is asked for decides what goes wrong: a reference with the tag `missing` is not
found, with `slow` it is resolved when cancelled only; a grant named `refused` is refused, one named `fatal` kills the fetcher,
one named `hang_up` ends the mount's session.
Every request is written to `requests.log` in the cache directory: operation, mount, grant.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fuse import wire
from fuse.errors import Cancelled, Forbidden, NotFound, WeightlessError
from fuse.fetch import protocol
from fuse.filesystem import table
from tests.support.fetchsession import FakeFetcher
from tests.support.workerprocess import table_of

PROGRAM = (str(Path(__file__)),)
SIZE = 3 * 1024 * 1024 + 4711


def content_of(reference: str) -> bytes:
    """The bytes of the one file, `model.bin`, that every reference has."""
    return random.Random(reference.partition("@")[0]).randbytes(SIZE)


class Server:
    def __init__(self, cache: Path) -> None:
        self.log = (cache / "requests.log").open("a", buffering=1)
        self.cache = cache
        self.tables: dict[str, bytes] = {}
        self.fakes: dict[str, FakeFetcher] = {}
        self.slow: dict[int, wire.Channel[protocol.Request]] = {}
        self.lock = threading.Lock()
        self.clients = 0

    def serve(self, channel: wire.Channel[protocol.Request]) -> None:
        try:
            while (received := channel.receive()) is not None:
                request, fds = received
                told = [getattr(request, name, "") for name in ("mount", "grant", "copy_out")]
                self.log.write(json.dumps([type(request).__name__, *told]) + "\n")
                try:
                    self.answer(channel, request, fds)
                except WeightlessError as error:
                    channel.send(protocol.Refused(id=request.id, fault=error.to_fault()))
                finally:
                    wire.close_all(fds)
        finally:
            channel.close()
            with self.lock:
                self.clients -= 1
                if self.clients == 0:
                    (self.cache / protocol.SOCKET_NAME).unlink()
                    os._exit(0)

    def answer(self, channel: wire.Channel[protocol.Request], request: protocol.Request, fds: list[int]) -> None:
        match request:
            case protocol.Hello(id=number):
                channel.send(protocol.Welcome(id=number, pid=os.getpid()))
            case protocol.Resolve(id=number, reference=reference):
                if reference.endswith(":missing"):
                    raise NotFound("no such tag", where=reference)
                if reference.endswith(":slow"):
                    self.slow[number] = channel
                    return
                self.resolve(channel, number, reference)
            case protocol.Cancel(id=number):
                if number in self.slow:
                    channel.send(protocol.Refused(id=number, fault=Cancelled("given up").to_fault()))
            case protocol.Attach(mount=mount):
                content = table.decode(wire.read_whole(fds[1], table.MAX_TABLE_BYTES))
                directory = self.cache / mount
                directory.mkdir(exist_ok=True)
                fake = FakeFetcher(directory, [content_of(content.artifacts[0].media_type)])
                self.attach(fake, os.dup(fds[0]))
                self.fakes[mount] = fake
                channel.send(protocol.Done(id=request.id))
            case protocol.Grant(grant="refused", reference=reference):
                raise Forbidden("may not", where=reference)
            case protocol.Grant(grant="fatal"):
                os._exit(9)
            case protocol.Grant(grant="hang_up", mount=mount):
                session = self.fakes[mount]._channel
                assert session is not None
                session.hang_up()
                channel.send(protocol.Done(id=request.id))
            case protocol.Progress(mount=mount):
                blobs = self.fakes[mount].blobs if mount else ()
                channel.send(
                    protocol.MountProgress(
                        id=request.id,
                        bytes_cached=sum(blob.index.has(0) for blob in blobs),
                        bytes_total=SIZE,
                        bytes_fetched=0,
                        requests=0,
                        rate_bytes_per_s=0.0,
                        verified_blobs=0,
                    )
                )
            case protocol.CacheList(id=number):
                blob = protocol.CachedBlob(
                    digest="d", size=1, bytes_cached=1, complete=True, verified=True, pinned=False, used_at=0.0
                )
                channel.send(protocol.CacheBlobs(id=number, blobs=(blob,), last=False))
                channel.send(protocol.CacheBlobs(id=number, blobs=(blob,), last=True))
            case _:
                channel.send(protocol.Done(id=request.id))

    def resolve(self, channel: wire.Channel[protocol.Request], number: int, reference: str) -> None:
        made = table_of({"model.bin": (0, 0, SIZE)}, [content_of(reference)])
        # The reference travels as the media type, so that the session knows what to serve.
        made = table.Table(
            artifacts=(table.Artifact(digest=made.blobs[0].digest, media_type=reference),),
            blobs=made.blobs,
            nodes=made.nodes,
        )
        encoded = table.encode(made)
        fd = wire.sealed_memfd("table", encoded)
        channel.send(
            protocol.Resolved(
                id=number,
                digest=made.blobs[0].digest,
                reference=f"{reference}@{made.blobs[0].digest}",
                media_type=reference,
                table=table.identity(encoded),
                bytes_total=SIZE,
                files=1,
            ),
            [fd],
        )
        os.close(fd)

    @staticmethod
    def attach(fake: FakeFetcher, session: int) -> None:
        """Joins the fake's end to the session that was handed over, packet by packet."""
        import socket

        theirs = socket.socket(fileno=session)
        channel = wire.Channel[protocol.FromWorker](theirs, protocol.FromWorker)
        fake._channel = channel
        fake._thread = threading.Thread(target=fake._serve, args=(channel,), daemon=True)
        fake._thread.start()


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    if os.environ.get("WEIGHTLESS_TEST_FETCHER") == "broken":
        sys.exit("the cache is on fire")
    cache = Path(arguments["--cache-dir"])
    json.loads(arguments["--settings"])
    os.fstat(int(arguments["--lock-fd"]))
    server = Server(cache)
    listener = wire.listen(cache / protocol.SOCKET_NAME)
    while True:
        select.select([listener], [], [])
        sock, _ = listener.accept()
        with server.lock:
            server.clients += 1
        channel = wire.Channel[protocol.Request](sock, protocol.Request)
        threading.Thread(target=server.serve, args=(channel,), daemon=True).start()


if __name__ == "__main__":
    main()
