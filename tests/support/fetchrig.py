"""The engine with everything that works for it, in this process, and a reader's end that remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.cache.blob import CachedBlob
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.fetch import protocol
from fuse.fetch.engine import Engine
from fuse.fetch.mounts import Mount, Port
from fuse.fetch.runs import Priority
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.transfer import Lanes
from fuse.fetch.verify import Verifier
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.support.fetcher import access_to, pattern
from tests.support.registry import FaultyRegistry

MIB = 1024 * 1024
CONTENT = pattern(40 * MIB + 12345)
DIGEST = Digest.of(CONTENT)
SCOPE = scope_of("registry.example/m")
BLOCKS = 41


def expected(block: int) -> bytes:
    return CONTENT[block * MIB : (block + 1) * MIB]


class Recorder:
    """A sink that remembers, and holds the blob's files."""

    def __init__(self) -> None:
        self.news = threading.Condition()
        self.ready: list[tuple[int, int]] = []
        self.loans: dict[int, bytes] = {}
        self.failed: list[protocol.Failed] = []
        self.quarantined: list[protocol.Quarantined] = []
        self.stalls: list[protocol.Stalled] = []
        self.files: CachedBlob | None = None
        self.opened = False
        self.whole = 0
        """How often it was said that the whole is verified."""

    def send(self, message: protocol.ToWorker, fds: Sequence[int] = ()) -> None:
        with self.news:
            match message:
                case protocol.Opened():
                    self.opened = True
                    self.files = CachedBlob(*fds) if fds else None
                case protocol.Ready(count=0):
                    self.whole += 1
                case protocol.Ready():
                    self.ready += [(message.blob, message.first + i) for i in range(message.count)]
                case protocol.Loan():
                    self.loans[message.block] = wire.read_whole(fds[0], BLOCK_BYTES)
                    wire.close_all(fds)
                case protocol.Failed():
                    self.failed.append(message)
                case protocol.Quarantined():
                    self.quarantined.append(message)
                case protocol.Stalled():
                    self.stalls.append(message)
            self.news.notify_all()

    def takes_loan(self) -> bool:
        return True

    def come_back(self) -> None:
        raise AssertionError("there is always memory")

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        with self.news:
            assert self.news.wait_for(condition, 20), f"waited in vain: {what}"

    def wait_ready(self, *blocks: int) -> None:
        self.wait(lambda: self.failed or all((0, block) in self.ready for block in blocks), f"blocks {blocks}")
        assert not self.failed, self.failed

    def block(self, block: int) -> bytes:
        assert self.files is not None
        assert self.files.has(block)
        assert self.files.check(block)
        return self.files.read(block * MIB, MIB)


class Rig:
    """An engine with everything that works for it, and one registry."""

    def __init__(self, root: Path, registry: FaultyRegistry, **settings: Any) -> None:
        settings.setdefault("free_space_fraction", 0.0)
        self.settings = FetcherSettings(**settings)
        self.registry = registry
        self.transport = Transport(environment={})
        self.store = CacheStore(root)
        self.engine = Engine(self.store, self.settings)
        self.verifier = Verifier(self.engine)
        self.lanes = Lanes(self.engine)
        self.verifier.start()
        self.lanes.start()
        self.recorders: list[Recorder] = []
        self.mounts: list[Mount] = []

    def source(self, registry: FaultyRegistry | None = None, repository: str = "m") -> Repository:
        used = registry or self.registry
        reference = Reference.parse(f"{used.host}/{repository}:v1")
        return Repository(reference, access_to(used.url), self.transport)

    def mount(
        self, digest: Digest = DIGEST, size: int = len(CONTENT), *, granted: bool = True
    ) -> tuple[Port, Recorder]:
        mount = self.engine.attach("m", [BlobKey(digest, size, SCOPE)])
        self.mounts.append(mount)
        if granted:
            self.engine.grant(mount, "g", self.source())
        recorder = Recorder()
        self.recorders.append(recorder)
        port = self.engine.open_port(mount, recorder)
        self.engine.open(port, 0)
        return port, recorder

    def bytes_of(self, port: Port, seen: Recorder, first: int, count: int) -> bytes:
        """Demands blocks and returns their bytes, from the cache or lent, as a worker would: what is damaged is asked again."""
        content = b""
        for block in range(first, first + count):
            while True:
                seen.ready.clear()
                seen.loans.clear()
                self.want(port, block)
                seen.wait(lambda: seen.failed or seen.ready or seen.loans, f"block {block}")
                assert not seen.failed, seen.failed
                if block in seen.loans:
                    content += seen.loans[block]
                    break
                assert seen.files is not None
                try:
                    if seen.files.has(block) and seen.files.check(block):
                        content += seen.files.read(block * MIB, MIB)
                        break
                except OSError:
                    seen.files.doubt(block)
                self.engine.damaged(port, 0, block, 1)
        return content

    def want(self, port: Port, first: int, count: int = 1, priority: Priority = Priority.DEMAND) -> None:
        self.engine.want(port, 0, first, count, priority)

    def close(self) -> None:
        self.registry.release()
        for mount in self.mounts:
            self.engine.detach(mount)
        self.engine.dispatch.close()
        self.verifier.close()
        self.registry.stop()
        self.lanes.join(10)
        self.verifier.join(10)
        self.transport.close()
        for recorder in self.recorders:
            if recorder.files is not None:
                recorder.files.close()
