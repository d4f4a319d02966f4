"""The engine on disks that become full, read-only, fail or vanish: real file systems, and every byte right."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuse.cache.writer import BlobWriter
from fuse.fetch import verify
from fuse.fetch.runs import Priority
from tests.conftest import need_program
from tests.support.disks import ext4, tmpfs
from tests.support.fetcher import FetcherProcess, wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, DIGEST, MIB, Recorder, Rig
from tests.support.registry import FaultyRegistry

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting file systems needs root")


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        yield registry


@contextmanager
def rig_on(path: Path, registry: FaultyRegistry) -> Iterator[Rig]:
    rig = Rig(path, registry)
    try:
        yield rig
    finally:
        rig.close()


def last_fault(seen: Recorder) -> str:
    """The kind of what the mount complains of now; empty when it does not."""
    fault = seen.stalls[-1].fault if seen.stalls else None
    return fault.kind if fault else ""


@root_only
def test_a_full_disk_lends_and_goes_on_when_there_is_room(tmp_path: Path, registry: FaultyRegistry) -> None:
    """A real file system without room: readers get lent blocks, the mount says why, and the cache fills once there is room."""
    cache = tmp_path / "c"
    with tmpfs(cache, 64), rig_on(cache, registry) as rig:
        (cache / "lost+found").write_bytes(bytes(60 * MIB))  # somebody else's bytes
        port, seen = rig.mount()
        rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        seen.wait(lambda: last_fault(seen) == "no_space", "the complaint")
        since = rig.engine.progress(port.mount, 1).stalled_since
        assert rig.bytes_of(port, seen, 20, 20) == CONTENT[20 * MIB : 40 * MIB]
        assert rig.engine.progress(port.mount, 1).stalled_since == since
        (cache / "lost+found").unlink()
        wait_until(lambda: seen.files is not None and seen.files.complete, "the cache to fill")

        assert seen.files is not None
        assert seen.files.read(0, len(CONTENT)) == CONTENT
        seen.wait(lambda: last_fault(seen) == "", "the end of the complaint")


@root_only
def test_a_read_only_disk_serves_what_it_has_and_the_rest_is_lent(tmp_path: Path, registry: FaultyRegistry) -> None:
    """A file system that went read-only under open files: cached blocks come from it, others from the registry."""
    need_program("mkfs.ext4", "e2fsprogs")
    cache = tmp_path / "c"
    with ext4(cache, 96) as disk, rig_on(cache, registry) as rig:
        port, seen = rig.mount()
        assert rig.bytes_of(port, seen, 0, 10) == CONTENT[: 10 * MIB]
        disk.make_read_only()
        with pytest.raises(OSError, match="Read-only"):
            (cache / "probe").touch()
        before = len(registry.requests("blob"))
        assert rig.bytes_of(port, seen, 0, 10) == CONTENT[: 10 * MIB]
        assert len(registry.requests("blob")) == before
        assert rig.bytes_of(port, seen, 10, BLOCKS - 10) == CONTENT[10 * MIB :]
        assert last_fault(seen) == "cache_failed"
        other, others = rig.mount()  # a later mount is served as well
        assert rig.bytes_of(other, others, 5, 10) == CONTENT[5 * MIB : 15 * MIB]


@root_only
def test_a_dead_disk_costs_no_byte_and_no_process(tmp_path: Path, registry: FaultyRegistry) -> None:
    """Everything is EIO in the middle of a load, maps of files would be SIGBUS: fetcher and reader live, every byte is right."""
    need_program("mkfs.ext4", "e2fsprogs")
    cache = tmp_path / "c"
    blobs = [(DIGEST, len(CONTENT))]
    with (
        ext4(cache, 96) as disk,
        FetcherProcess(cache, uid=0, gid=0) as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", blobs, registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        files = worker.open()
        assert worker.demand(0, 0, 10) == CONTENT[: 10 * MIB]
        disk.fail()
        assert files is not None
        assert files.has(0, 10)
        for block in range(10):  # what a worker does with a block that it cannot read
            with pytest.raises(OSError, match="Input/output"):
                files.read(block * MIB, MIB)
            worker.ready.discard((0, block))
        worker.damage(0, 0, 10)
        assert worker.demand(0, 0, BLOCKS) == CONTENT
        stalled = admin.progress("m").stalled_by
        assert stalled is not None
        assert stalled.kind == "cache_failed"
        assert fetcher.process.poll() is None


def test_an_emptied_cache_directory_is_made_anew(tmp_path: Path, registry: FaultyRegistry) -> None:
    """Somebody removed what is in it: open blobs are read on, and later ones are cached again."""
    cache = tmp_path / "c"
    cache.mkdir()
    small = bytes(range(256)) * 20000
    digest = registry.add_blob(small)
    with rig_on(cache, registry) as rig:
        port, seen = rig.mount()
        assert rig.bytes_of(port, seen, 0, 3) == CONTENT[: 3 * MIB]
        for entry in cache.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        assert rig.bytes_of(port, seen, 0, 5) == CONTENT[: 5 * MIB]
        other, others = rig.mount(digest, len(small))
        assert rig.bytes_of(other, others, 0, 5) == small
        assert list(cache.glob("blobs/sha256/*.index"))
        assert (cache / "version").exists()


def test_a_removed_cache_directory_ends_the_fetcher(tmp_path: Path, registry: FaultyRegistry) -> None:
    """Nothing can be made in a directory that is gone: the fetcher leaves, so that another one is started in a new one."""
    cache = tmp_path / "c"
    with (
        FetcherProcess(cache) as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", [(DIGEST, len(CONTENT))], registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        shutil.rmtree(cache)
        worker.want(0, 0)
        assert fetcher.process.wait(10) == 0


def test_a_block_that_cannot_be_read_is_fetched_anew_for_the_digest(
    tmp_path: Path, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sector goes bad before the whole was verified: the block is taken back, and whoever waits for the whole gets it."""
    cache = tmp_path / "c"
    cache.mkdir()
    bad = {5}
    read = verify.read_quietly
    read_into = BlobWriter.read_into

    def fails(fd: int, content: memoryview, offset: int) -> bool:
        if bad & {*range(offset // MIB, (offset + len(content)) // MIB)}:
            raise OSError(errno.EIO, "as the test says")
        return read(fd, content, offset)

    def fails_too(writer: BlobWriter, block: int, buffer: memoryview) -> memoryview:
        if block in bad:
            bad.remove(block)  # it is written anew to a good sector
            raise OSError(errno.EIO, "as the test says")
        return read_into(writer, block, buffer)

    monkeypatch.setattr(verify, "read_quietly", fails)
    monkeypatch.setattr(BlobWriter, "read_into", fails_too)
    with rig_on(cache, registry) as rig:
        port, seen = rig.mount()
        rig.want(port, 0, BLOCKS)
        rig.engine.want_whole(port, 0)
        seen.wait(lambda: seen.whole, "the whole to be verified")
        assert not bad
        assert rig.engine.tally.counts()["blocks_damaged"] == 1


def test_a_blob_that_was_not_synced_is_hashed_and_synced_again(
    tmp_path: Path, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses fsync once leaves the blob unverified for a while, not for ever."""
    cache = tmp_path / "c"
    cache.mkdir()
    monkeypatch.setattr(verify, "_SYNC_AGAIN_S", 0.05)
    failures = iter((True, True))
    sync = BlobWriter.sync

    def fails(writer: BlobWriter) -> None:
        if next(failures, False):
            raise OSError(errno.EIO, "as the test says")
        sync(writer)

    monkeypatch.setattr(BlobWriter, "sync", fails)
    with rig_on(cache, registry) as rig:
        port, seen = rig.mount()
        rig.want(port, 0, BLOCKS)
        wait_until(lambda: seen.files is not None and seen.files.verified, "the blob to be verified")
        assert next(failures, "none left") == "none left"
