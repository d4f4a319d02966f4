"""What the fetcher holds in memory for readers that take nothing: counted, and bounded."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fuse import wire
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey
from fuse.cache.store import CacheStore
from fuse.cache.writer import BlobWriter
from fuse.fetch import protocol, session
from fuse.fetch.session import Session
from tests.support.fetcher import FetcherProcess, Worker, pattern, wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, DIGEST, SCOPE, Rig
from tests.support.registry import FaultyRegistry


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """On a disk that takes nothing."""

    def fails(*_: object) -> BlobWriter:
        raise OSError(errno.EROFS, "as the test says")

    monkeypatch.setattr(CacheStore, "open", fails)
    (tmp_path / "c").mkdir()
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        rig = Rig(tmp_path / "c", registry)
        yield rig
        rig.close()


def test_a_reader_that_takes_nothing_is_lent_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks in flight to it are few, however many it asks for; when it takes them it gets the rest, and every byte is right."""
    lent: list[int] = []
    sealed_memfd = wire.sealed_memfd
    failures = iter((True, True))

    def counted(name: str, content: Any) -> int:
        if next(failures, False):
            raise OSError(errno.ENOMEM, "as the test says")
        lent.append(1)
        return sealed_memfd(name, content)

    monkeypatch.setattr(wire, "sealed_memfd", counted)
    mount = rig.engine.attach("m", [BlobKey(DIGEST, len(CONTENT), SCOPE)])
    rig.mounts.append(mount)
    rig.engine.grant(mount, "g", rig.source())
    ours, theirs = wire.pair()
    served = Session(rig.engine, mount, theirs)
    served.start()
    (port,) = mount.ports
    channel: wire.Channel[protocol.ToWorker] = wire.Channel(ours, protocol.ToWorker)
    channel.send(protocol.Open(blob=0))
    for block in range(BLOCKS):
        channel.send(protocol.Want(blob=0, first=block, count=1, priority="demand"))
    wait_until(lambda: len(lent) + len(port.deferred) >= BLOCKS - 2, "every block to be lent or put off")
    lanes = rig.settings.connections + 2
    assert len(lent) <= session._MOST_LOANS + lanes

    with Worker(ours, [(DIGEST, len(CONTENT))]) as worker:
        worker.wait(lambda: len(worker.loans) == BLOCKS, "every block")
        assert b"".join(worker.loans[0, block] for block in range(BLOCKS)) == CONTENT
        assert not worker.failed
        assert len(CONTENT) > (session._MOST_LOANS + lanes) * BLOCK_BYTES
    served.join()


def test_more_blobs_than_descriptors_are_read_all_the_same(tmp_path: Path) -> None:
    """A fetcher that may open few files serves an artifact of many: what it cannot open is lent, and the mount says why."""
    contents = [pattern(5000 + number, seed=number) for number in range(60)]
    with FaultyRegistry() as registry:
        blobs = [(registry.add_blob(content), len(content)) for content in contents]
        with (
            FetcherProcess(tmp_path / "cache", files=100) as fetcher,
            fetcher.connect() as admin,
            admin.attach("m", blobs, registry.url) as worker,
        ):
            admin.grant("m", registry.url)
            for number, content in enumerate(contents):
                worker.open(number)
                assert worker.demand(number, 0) == content
            assert worker.loans
            assert worker.ready
            trouble = admin.progress("m").stalled_by
            assert trouble is not None
            assert "RLIMIT_NOFILE" in trouble.fix
            assert fetcher.process.poll() is None


def test_a_worker_that_only_opens_takes_not_all_descriptors(tmp_path: Path) -> None:
    """It asks for a blob's files again and again, and takes none: it is hung up on, and nothing stays open for it."""
    (tmp_path / "c").mkdir()
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        rig = Rig(tmp_path / "c", registry)
        mount = rig.engine.attach("m", [BlobKey(DIGEST, len(CONTENT), SCOPE)])
        rig.mounts.append(mount)
        ours, theirs = wire.pair()
        served = Session(rig.engine, mount, theirs)
        served.start()
        hung_up = pytest.raises(OSError, match="Broken pipe")
        with wire.Channel[protocol.ToWorker](ours, protocol.ToWorker) as channel, hung_up:
            for _ in range(100_000):
                channel.send(protocol.Open(blob=0))
        served.join(10)
        assert not mount.ports
        assert served._waiting_fds <= served._most_fds + 2
        rig.close()


def test_administrators_beyond_all_descriptors_wait(tmp_path: Path) -> None:
    """Nobody's connection ends the fetcher, which others use: who finds no room is served when there is some."""
    path = tmp_path / "cache" / protocol.SOCKET_NAME
    with FetcherProcess(tmp_path / "cache", files=64) as fetcher, fetcher.connect() as admin:
        open_files = Path(f"/proc/{fetcher.process.pid}/fd")
        with ExitStack() as crowd:
            for _ in range(60):
                crowd.enter_context(wire.connect(path))
            wait_until(lambda: len(list(open_files.iterdir())) == 64, "all descriptors to be used")
            assert admin.ask(protocol.Hello).pid == fetcher.process.pid
        with fetcher.connect() as another:
            assert another.ask(protocol.Hello).pid == fetcher.process.pid
        assert fetcher.process.poll() is None
