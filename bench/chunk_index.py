"""What proving every chunk costs: the fetcher fills a cache over loopback, with and without a chunk index, in turns.

Only the fetcher, in this process, so that the ratio is that of the lanes; from nginx. The digest of
the whole is computed as well in both, after the transfers, as always; the time is until all blocks are there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.results import Result, ratios
from bench.scale import by_scale
from bench.servers import REPOSITORY, nginx
from bench.workshop import workshop
from fuse.artifact.chunks import CHUNK_BYTES, BlobHasher, ChunkDigests
from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.fetch import protocol
from fuse.fetch.engine import Engine
from fuse.fetch.runs import Priority
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.transfer import Lanes
from fuse.fetch.verify import Verifier
from fuse.registry.access import Access, Endpoint
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from weightless.demo.pack import pack_model

_SIZE: Final = by_scale(small=64, full=768) * 1024 * 1024
_ROUNDS: Final = by_scale(small=1, full=3)


def measure() -> list[Result]:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with workshop() as directory:
        source = directory / "source"
        source.mkdir()
        content = os.urandom(_SIZE)
        (source / "model.safetensors").write_bytes(content)
        digest = Digest.of(content)
        hasher = BlobHasher(digest, _SIZE)
        for at in range(0, _SIZE, CHUNK_BYTES):
            hasher.add(content[at : at + CHUNK_BYTES])
        chunks = hasher.finish()
        assert chunks is not None
        del content
        with nginx(directory / "nginx", pack_model(source)) as server:
            for number in range(2 * _ROUNDS):
                indexed = bool(number % 2)
                seconds[indexed].append(
                    _fill(directory / f"cache{number}", server.host, digest, chunks if indexed else None)
                )
    return [
        Result(
            what="filling a cache, with a chunk index",
            unit="bytes/s",
            samples=tuple(_SIZE / each for each in seconds[True]),
        ),
        Result(what="  with / without", unit="ratio", samples=ratios(seconds[False], seconds[True])),
    ]


class _Nobody:
    """A session that only listens."""

    def send(self, message: protocol.ToWorker, fds: Sequence[int] = ()) -> None:
        del message
        for fd in fds:
            os.close(fd)

    def takes_loan(self) -> bool:
        return True

    def come_back(self) -> None:
        """Nothing was refused."""


def _fill(cache: Path, host: str, digest: Digest, chunks: ChunkDigests | None) -> float:
    cache.mkdir()
    transport = Transport(environment={})
    engine = Engine(CacheStore(cache), FetcherSettings(free_space_fraction=0.0))
    verifier, lanes = Verifier(engine), Lanes(engine)
    verifier.start()
    lanes.start()
    endpoint = Endpoint(url=f"http://{host}/v2", origin=True, named=True)
    repository = Repository(
        Reference.parse(f"{host}/{REPOSITORY}:v1"), Access(registry=host, endpoints=(endpoint,)), transport
    )
    mount = engine.attach("bench", [BlobKey(digest, _SIZE, scope_of(host))])
    try:
        if chunks is not None:
            engine.know_chunks(mount, {digest: chunks}, authentic=False)
        engine.grant(mount, "bench", repository)
        port = engine.open_port(mount, _Nobody())
        began = time.monotonic()
        engine.want(port, 0, 0, mount.blobs[0].blocks, Priority.BACKGROUND)
        while not mount.blobs[0].complete:
            time.sleep(0.005)
        return time.monotonic() - began
    finally:
        engine.detach(mount)
        engine.dispatch.close()
        verifier.close()
        lanes.join(10)
        verifier.join(10)
        transport.close()
