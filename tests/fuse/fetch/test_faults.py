"""The engine, its lanes and its verifier in this process, against a real registry that misbehaves by script."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.cache.writer import BlobWriter
from fuse.errors import Corrupt, Forbidden, NotFound, from_fault
from fuse.fetch import protocol
from fuse.fetch.inventory import Inventory
from fuse.fetch.mounts import Port
from fuse.fetch.reader import EngineReader
from fuse.fetch.runs import Priority
from fuse.registry import ranges
from tests.support.fetcher import pattern, wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, DIGEST, MIB, SCOPE, Recorder, Rig, expected
from tests.support.registry import FaultyRegistry, Tokens


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        yield registry


@pytest.fixture
def rig(tmp_path: Path, registry: FaultyRegistry) -> Iterator[Rig]:
    (tmp_path / "c").mkdir()
    rig = Rig(tmp_path / "c", registry)
    yield rig
    rig.close()


def test_a_demand_brings_the_block_and_no_more(rig: Rig) -> None:
    """One block asked for is one block fetched, with its bytes."""
    port, seen = rig.mount()
    rig.want(port, 40)
    seen.wait_ready(40)

    assert seen.block(40) == expected(40)
    progress = rig.engine.progress(port.mount, 7)
    assert (progress.id, progress.bytes_fetched, progress.bytes_cached, progress.requests) == (7, 12345, 12345, 1)


def test_a_whole_blob_is_fetched_once_and_verified(rig: Rig, registry: FaultyRegistry) -> None:
    """Many readers of many mounts cost the blob's bytes once; at the end it is verified."""
    ports = [rig.mount() for _ in range(4)]
    generator = random.Random(1)

    def read(port: Port) -> None:
        blocks = list(range(BLOCKS))
        generator.shuffle(blocks)
        for block in blocks:
            rig.want(port, block)

    threads = [threading.Thread(target=read, args=(port,)) for port, _ in ports]
    rig.want(ports[0][0], 0, BLOCKS, Priority.BACKGROUND)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, seen in ports:
        seen.wait_ready(*range(BLOCKS))
        assert b"".join(seen.block(block) for block in range(BLOCKS)) == CONTENT
    files = ports[0][1].files
    assert files is not None
    wait_until(lambda: files.verified, "the blob to be verified")

    assert files.complete
    assert rig.engine.progress(ports[0][0].mount, 1).bytes_fetched == len(CONTENT)
    for _, seen in ports:
        assert sorted(seen.ready) == [(0, block) for block in range(BLOCKS)]


@pytest.mark.parametrize(
    "script", ["503 429;0 500", "cut@3000000 cut@1500000 cut@0 cut@1048576", "wrong-range wrong-range"]
)
def test_temporary_faults_only_delay(rig: Rig, registry: FaultyRegistry, script: str) -> None:
    """Errors, broken answers and wrong ranges are retried until the blocks are there; nobody is told of a failure."""
    registry.script("blob", script)
    port, seen = rig.mount()
    rig.want(port, 0, BLOCKS)
    seen.wait_ready(*range(BLOCKS))

    assert b"".join(seen.block(block) for block in range(BLOCKS)) == CONTENT


def test_a_server_without_ranges_is_streamed_once(rig: Rig, registry: FaultyRegistry) -> None:
    """Where Range is ignored the whole blob comes in one stream, and later demands find it in the cache."""
    registry.script("blob", "no-range", forever=True)
    port, seen = rig.mount()
    rig.want(port, 30)
    seen.wait_ready(30)
    rig.want(port, 0, BLOCKS)
    seen.wait_ready(*range(BLOCKS))

    assert b"".join(seen.block(block) for block in range(BLOCKS)) == CONTENT
    assert len(registry.requests("blob")) == 1


def test_parallel_runs_against_a_server_without_ranges(rig: Rig, registry: FaultyRegistry) -> None:
    """Lanes that find out at the same time leave the stream to one of them, and all blocks arrive."""
    registry.script("blob", "no-range", forever=True)
    port, seen = rig.mount()
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    for block in range(0, BLOCKS, 7):
        rig.want(port, block)
    rig.want(port, 0, BLOCKS)
    seen.wait_ready(*range(BLOCKS))

    assert b"".join(seen.block(block) for block in range(BLOCKS)) == CONTENT


def test_a_stream_without_ranges_that_breaks_begins_anew(rig: Rig, registry: FaultyRegistry) -> None:
    """A cut in the one stream costs a second one, no more."""
    registry.script("blob", "no-range cut@5000000 no-range", forever=True)
    port, seen = rig.mount()
    rig.want(port, 0, BLOCKS)
    seen.wait_ready(*range(BLOCKS))

    assert b"".join(seen.block(block) for block in range(BLOCKS)) == CONTENT


def test_a_blob_that_is_not_there_fails_who_waits(rig: Rig, registry: FaultyRegistry) -> None:
    """404 is permanent: the reader is told, once, and a later demand is told at once; a new grant tries again."""
    registry.remove_blob(DIGEST)
    port, seen = rig.mount()
    rig.want(port, 3)
    seen.wait(lambda: seen.failed, "the failure")
    assert isinstance(from_fault(seen.failed[0].fault), NotFound)
    assert isinstance(rig.engine.progress(port.mount, 1).failed_by, protocol.Fault)
    requests = len(registry.requests("blob"))
    rig.want(port, 3)
    seen.wait(lambda: len(seen.failed) == 2, "the second answer")
    assert len(registry.requests("blob")) == requests

    registry.add_blob(CONTENT)
    rig.engine.grant(port.mount, "g", rig.source())
    seen.failed.clear()
    rig.want(port, 3)
    seen.wait_ready(3)
    assert rig.engine.progress(port.mount, 1).failed_by is None


def test_another_grant_is_asked_when_one_is_refused(rig: Rig, registry: FaultyRegistry) -> None:
    """A shared blob is fetched with any live publish's credentials."""
    registry.denied.add("private")
    port, seen = rig.mount(granted=False)
    rig.engine.grant(port.mount, "bad", rig.source(repository="private"))
    other = rig.engine.attach("other", [BlobKey(DIGEST, len(CONTENT), SCOPE)])
    rig.mounts.append(other)
    rig.want(port, 0)
    seen.wait(lambda: seen.failed, "the refusal")
    assert isinstance(from_fault(seen.failed.pop().fault), Forbidden)
    rig.engine.grant(other, "good", rig.source())
    rig.want(port, 0)
    seen.wait_ready(0)

    assert seen.block(0) == expected(0)


def test_without_a_grant_readers_wait_and_are_told_why(rig: Rig) -> None:
    """After a restart wishes may come before grants: they wait, and the mount is said to stall, until one comes."""
    port, seen = rig.mount(granted=False)
    rig.want(port, 2)
    seen.wait(lambda: seen.stalls, "the stall")
    assert seen.stalls[0].fault is not None
    rig.engine.grant(port.mount, "g", rig.source())
    seen.wait_ready(2)
    seen.wait(lambda: seen.stalls[-1].fault is None, "the end of the stall")

    assert not seen.failed


def test_a_revoked_grant_is_used_no_more(rig: Rig, registry: FaultyRegistry) -> None:
    """When the last publish goes, its credentials fetch nothing further."""
    port, seen = rig.mount()
    rig.want(port, 0)
    seen.wait_ready(0)
    rig.engine.revoke(port.mount, "g")
    requests = len(registry.requests("blob"))
    rig.want(port, 9)
    seen.wait(lambda: seen.stalls, "the stall")

    assert len(registry.requests("blob")) == requests


def test_when_the_good_grant_goes_the_refused_one_has_the_last_word(rig: Rig, registry: FaultyRegistry) -> None:
    """Who has but credentials that were refused is told so; it does not wait for ever for others to come."""
    registry.denied.add("private")
    port, seen = rig.mount(granted=False)
    rig.engine.grant(port.mount, "bad", rig.source(repository="private"))
    other = rig.engine.attach("other", [port.mount.blobs[0].key])
    rig.engine.grant(other, "good", rig.source())
    blob = port.mount.blobs[0]
    for block in range(4):  # so that each of the two is asked
        rig.want(port, 2 * block)
        seen.wait(lambda: seen.failed or (0, 2 * block) in seen.ready, "an answer")  # noqa: B023
    wait_until(lambda: blob.refusals, "the refusal")
    seen.failed.clear()
    rig.engine.detach(other)
    rig.want(port, 30)
    seen.wait(lambda: seen.failed, "the refusal of the grant that is left")

    assert isinstance(from_fault(seen.failed[0].fault), Forbidden)


def test_a_blob_that_lost_its_grants_is_forgotten_with_its_mount(rig: Rig) -> None:
    """Unpublishing in the middle of a transfer leaves nothing behind in the queue."""
    port, seen = rig.mount()
    rig.engine.revoke(port.mount, "g")
    rig.want(port, 9)
    seen.wait(lambda: seen.stalls, "the stall")
    rig.engine.detach(port.mount)

    wait_until(lambda: not rig.engine.shelf.states(), "the blob to be closed")
    assert rig.engine.dispatch.queue.held_until(port.mount.blobs[0]) is None


def test_a_stalled_body_is_dropped_and_asked_for_again(rig: Rig, registry: FaultyRegistry) -> None:
    """A server that stops in the middle costs 5 s, is reported meanwhile, and the reader gets its bytes."""
    registry.script("blob", "stall@1500000")
    port, seen = rig.mount()
    rig.want(port, 0, 3)
    seen.wait_ready(0, 1, 2)
    seen.wait(lambda: seen.stalls and seen.stalls[-1].fault is None, "the stall and its end")

    assert seen.stalls[0].fault is not None
    assert seen.block(1) == expected(1)


def test_corrupt_bytes_of_a_large_blob_end_in_quarantine(rig: Rig, registry: FaultyRegistry) -> None:
    """When the whole does not match, everybody is told, nothing of it is served again, and a new mount begins anew."""
    registry.script("blob", "corrupt")
    port, seen = rig.mount()
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    seen.wait(lambda: seen.quarantined, "the quarantine")
    assert seen.files is not None
    assert seen.files.rejected
    rig.want(port, 1)
    seen.wait(lambda: seen.failed, "a refusal")
    assert isinstance(from_fault(seen.failed[0].fault), Corrupt)

    again, fresh = rig.mount()
    rig.want(again, 0, BLOCKS)
    fresh.wait_ready(*range(BLOCKS))
    assert b"".join(fresh.block(block) for block in range(BLOCKS)) == CONTENT


def test_a_small_blob_is_never_announced_before_it_matches(rig: Rig, registry: FaultyRegistry) -> None:
    """Corrupt configs are refused before anybody sees a byte."""
    small = pattern(2 * MIB + 5, seed=9)
    digest = registry.add_blob(small)
    registry.script("blob", "corrupt")
    port, seen = rig.mount(digest, len(small))
    rig.want(port, 0)
    seen.wait(lambda: seen.failed, "the failure")
    assert isinstance(from_fault(seen.failed[0].fault), Corrupt)
    assert seen.files is not None
    assert seen.files.missing(0, 3) == [(0, 3)]

    rig.engine.grant(port.mount, "g", rig.source())
    seen.failed.clear()
    rig.want(port, 1)
    seen.wait_ready(1)
    assert seen.files.read(0, len(small)) == small


def test_a_lie_about_the_size_is_permanent(rig: Rig) -> None:
    """A manifest that promises another size than the registry has is an error with both numbers, not an endless retry."""
    port, seen = rig.mount(DIGEST, len(CONTENT) + 5 * MIB)
    rig.want(port, 0)
    seen.wait(lambda: seen.failed, "the failure")

    assert str(len(CONTENT)) in seen.failed[0].fault.what


def test_damaged_blocks_are_fetched_anew(rig: Rig) -> None:
    """A reader that finds a torn block gets a good one; good blocks that it doubts are left alone."""
    port, seen = rig.mount()
    rig.want(port, 0, 4)
    seen.wait_ready(0, 1, 2, 3)
    writer = port.mount.blobs[0].writer
    assert writer is not None
    writer.write(2, memoryview(b"torn"))
    rig.engine.damaged(port, 0, 0, 4)
    assert seen.files is not None
    assert seen.files.missing(0, 4) == [(2, 1)]
    rig.want(port, 2)
    seen.wait(lambda: seen.ready.count((0, 2)) == 2, "block 2 again")

    assert seen.block(2) == expected(2)


def test_a_verified_blob_is_verified_again_after_a_damage(rig: Rig) -> None:
    """What was fetched anew for a damaged block is compared with the digest as everything was."""
    port, seen = rig.mount()
    blob = port.mount.blobs[0]
    rig.want(port, 0, BLOCKS)
    wait_until(lambda: blob.verified, "the blob to be verified")
    assert blob.writer is not None
    blob.writer.write(2, memoryview(b"torn"))
    rig.engine.damaged(port, 0, 2, 1)
    assert not blob.verified
    rig.want(port, 2)
    seen.wait(lambda: seen.ready.count((0, 2)) == 2, "block 2 again")

    wait_until(lambda: blob.verified, "the blob to be verified again")


class FullDisk:
    """Makes writes fail as a full disk does, while `full` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
        self.full = True
        write = BlobWriter.write

        def fails(writer: BlobWriter, block: int, content: memoryview) -> None:
            if self.full:
                raise OSError(code, "as the test says")
            write(writer, block, content)

        monkeypatch.setattr(BlobWriter, "write", fails)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing_does_not_stop_readers(rig: Rig, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Blocks that cannot be written are lent; background rests; when there is room again it goes on by itself."""
    disk = FullDisk(monkeypatch, code)
    port, seen = rig.mount()
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    rig.want(port, 5, 2)
    seen.wait(lambda: {5, 6} <= set(seen.loans), "the loans")
    seen.wait(lambda: seen.stalls, "the report")
    assert (seen.loans[5], seen.loans[6]) == (expected(5), expected(6))
    assert seen.stalls[0].fault is not None
    assert seen.stalls[0].fault.kind == ("no_space" if code in (errno.ENOSPC, errno.EDQUOT) else "cache_failed")
    disk.full = False
    assert seen.files is not None
    wait_until(lambda: seen.files is not None and seen.files.complete, "background to go on")

    assert seen.files.read(0, len(CONTENT)) == CONTENT


def test_a_disk_that_cannot_be_asked_costs_no_lane(
    tmp_path: Path, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More failures of the disk than there are lanes: each is tried again, and the reader gets its block."""
    (tmp_path / "c").mkdir()
    rig = Rig(tmp_path / "c", registry, connections=2, urgent_connections=1)
    failures = iter(range(4))
    disk = CacheStore.disk

    def fails(store: CacheStore) -> Any:
        if next(failures, None) is not None:
            raise OSError(errno.EIO, "the disk is ill")
        return disk(store)

    monkeypatch.setattr(CacheStore, "disk", fails)
    try:
        port, seen = rig.mount()
        assert rig.bytes_of(port, seen, 3, 1) == expected(3)
    finally:
        rig.close()


def test_quota_evicts_what_nobody_uses_and_lends_beyond(tmp_path: Path, registry: FaultyRegistry) -> None:
    """Within the quota: the old blob goes, the mounted one stays, and what does not fit is lent."""
    (tmp_path / "c").mkdir()
    rig = Rig(tmp_path / "c", registry, quota_bytes=24 * MIB)
    try:
        old = pattern(10 * MIB, seed=3)
        digest = registry.add_blob(old)
        port, seen = rig.mount(digest, len(old))
        rig.want(port, 0, 10)
        seen.wait_ready(*range(10))
        rig.engine.detach(port.mount)
        port, seen = rig.mount()
        rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        seen.wait(lambda: seen.stalls, "the cache to be full")
        wait_until(lambda: rig.store.stored(BlobKey(digest, len(old), SCOPE)) is None, "the old blob to go")
        rig.want(port, 0, BLOCKS)
        seen.wait(lambda: all(b in seen.loans or (0, b) in seen.ready for b in range(BLOCKS)), "every block")
        got = [seen.loans[b] if b in seen.loans else seen.block(b) for b in range(BLOCKS)]

        assert b"".join(got) == CONTENT
        assert seen.loans
        assert len(seen.ready) >= 12
        assert rig.store.used_bytes() <= 24 * MIB
    finally:
        rig.close()


def test_what_is_pinned_is_not_evicted(tmp_path: Path, registry: FaultyRegistry) -> None:
    """A pin by hand outweighs the need of a mount: what does not fit is lent, and the pinned blob is there after a restart."""
    (tmp_path / "c").mkdir()
    old = pattern(10 * MIB, seed=3)
    key = BlobKey(registry.add_blob(old), len(old), SCOPE)
    for _ in range(2):
        rig = Rig(tmp_path / "c", registry, quota_bytes=24 * MIB)
        try:
            port, seen = rig.mount(key.digest, len(old))
            assert rig.bytes_of(port, seen, 0, 10) == old
            rig.engine.shelf.pins.add("by hand", [str(key)])
            rig.engine.detach(port.mount)
            port, seen = rig.mount()
            assert rig.bytes_of(port, seen, 0, BLOCKS) == CONTENT
            stored = rig.store.stored(key)
            assert stored is not None
            assert stored.complete
        finally:
            rig.close()
            registry.start()


def test_leaving_a_mount_counts_as_use_and_checking_does_not(rig: Rig) -> None:
    """The age by which blobs are evicted is that of the last mount's end, not of its beginning, nor of a check."""
    port, seen = rig.mount()
    assert rig.bytes_of(port, seen, 0, 2) == CONTENT[: 2 * MIB]
    key = port.mount.blobs[0].key
    index = rig.store.paths(key)[1]
    os.utime(index, (1.0, 1.0))
    list(Inventory(rig.engine).verify((), threading.Event()))
    stored = rig.store.stored(key)
    assert stored is not None
    assert stored.used_at == 1.0
    rig.engine.shelf.touch()
    assert index.stat().st_mtime > 1.0
    os.utime(index, (1.0, 1.0))
    rig.engine.detach(port.mount)
    assert index.stat().st_mtime > 1.0


def test_no_room_for_the_index_means_loans(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that cannot even be opened is read all the same, without files."""

    def fails(*_: object) -> BlobWriter:
        raise OSError(errno.ENOSPC, "as the test says")

    monkeypatch.setattr(CacheStore, "open", fails)
    port, seen = rig.mount()
    assert seen.opened
    assert seen.files is None
    rig.want(port, 40)
    seen.wait(lambda: 40 in seen.loans, "the loan")
    assert seen.loans[40] == expected(40)
    monkeypatch.undo()
    rig.want(port, 7)
    seen.wait(lambda: 7 in seen.loans, "a loan: this reader has no files")
    assert seen.loans[7] == expected(7)


def test_the_engines_own_reader_goes_through_the_cache(rig: Rig, registry: FaultyRegistry) -> None:
    """Resolving reads ranges, twice for the price of once, and gets the registry's own word when it refuses."""
    with EngineReader(rig.engine, rig.source(), "registry.example/m", threading.Event()) as reader:
        assert reader.read(DIGEST, len(CONTENT), 3 * MIB - 10, 20) == CONTENT[3 * MIB - 10 : 3 * MIB + 10]
        assert reader.read(DIGEST, len(CONTENT), 2 * MIB, 5) == CONTENT[2 * MIB : 2 * MIB + 5]
        assert len(registry.requests("blob")) <= 2
        with pytest.raises(NotFound):
            reader.read(Digest.of(b"nobody has this"), 10, 0, 10)
    wait_until(lambda: not rig.engine.shelf.states(), "everything to be let go")


def test_a_block_that_is_lent_too_late_is_not_kept(rig: Rig) -> None:
    """A lane has it in its hands while the resolve that asked for it ends: its memory goes with that."""
    reader = EngineReader(rig.engine, rig.source(), "registry.example/m", threading.Event())
    reader.read(DIGEST, len(CONTENT), 0, 10)
    ((_, port, _),) = reader._open.values()
    reader.close()
    lent = wire.sealed_memfd("block", b"late")
    port.sink.send(protocol.Loan(blob=0, block=0), (lent,))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lent)


def test_closing_ports_and_mounts_leaves_nothing(rig: Rig, registry: FaultyRegistry) -> None:
    """Whatever was wished, after detaching nothing is wanted, held or running."""
    registry.script("blob", "stall@100 ok", forever=True)
    for _ in range(5):
        port, _ = rig.mount()
        rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        rig.want(port, 3, 5)
    for mount in rig.mounts:
        rig.engine.detach(mount)
    registry.release()
    wait_until(lambda: not rig.engine.shelf.states(), "the blobs to be let go")
    wait_until(lambda: rig.engine.statistics() == (0, 0), "the queue to be empty")


@pytest.mark.parametrize("seed", range(4))
def test_random_readers_see_the_blob_whatever_the_registry_does(
    rig: Rig, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Readers that come, ask at random and go, beside faults of registry and disk: every byte is right."""
    generator = random.Random(seed)
    faults = [
        "ok",
        "ok",
        "503",
        "cut@100",
        "cut@1048576",
        "cut@2500000",
        "wrong-range",
        "no-range",
        "429;0",
        "redirect",
    ]
    registry.script("blob", " ".join(generator.choices(faults, k=60)))
    write = BlobWriter.write
    refused = iter(generator.choices((True, False, False, False, False), k=60))

    def sometimes(writer: BlobWriter, block: int, content: memoryview) -> None:
        if next(refused, False):
            raise OSError(errno.ENOSPC, "as the test says")
        write(writer, block, content)

    monkeypatch.setattr(BlobWriter, "write", sometimes)
    wrong: list[int] = []

    def reader(seed: int) -> None:
        mine = random.Random(seed)
        port, seen = rig.mount()
        if mine.random() < 0.5:
            rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        for _ in range(30):
            first = mine.randrange(BLOCKS)
            blocks = range(first, min(BLOCKS, first + mine.choice((1, 1, 2, 7))))
            rig.want(port, first, len(blocks), mine.choice((Priority.DEMAND, Priority.DEMAND, Priority.READAHEAD)))
            rig.want(port, first, len(blocks))
            for block in blocks:
                seen.wait(lambda block=block: (0, block) in seen.ready or block in seen.loans, f"block {block}")  # type: ignore[misc]
                files = seen.files
                assert files is not None
                if files.has(block):
                    assert files.check(block)
                    got = files.read(block * MIB, MIB)
                else:
                    got = seen.loans[block]
                if got != expected(block):
                    wrong.append(block)
        if mine.random() < 0.5:
            rig.engine.detach(port.mount)

    errors: list[BaseException] = []

    def guarded(seed: int) -> None:
        try:
            reader(seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(seed * 100 + number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors, errors
    assert not wrong


def test_a_registry_that_hangs_starves_nobody_else(
    tmp_path: Path, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of a dead registry hold every connection that it may have; a mount of another one reads at once."""
    monkeypatch.setattr(ranges, "HEADER_TIMEOUT_S", 600.0)  # so that nothing but the spare lanes can help
    (tmp_path / "c").mkdir()
    rig = Rig(tmp_path / "c", registry, connections=3, urgent_connections=1)
    small = [pattern(MIB + number, seed=number) for number in range(8)]
    try:
        with FaultyRegistry() as dead:
            dead.script("blob", "hang", forever=True)
            scope = scope_of("dead.example")
            mount = rig.engine.attach("dead", [BlobKey(dead.add_blob(one), len(one), scope) for one in small])
            rig.mounts.append(mount)
            rig.engine.grant(mount, "g", rig.source(dead))
            port = rig.engine.open_port(mount, Recorder())
            for number in range(len(small)):
                rig.engine.want(port, number, 0, 2, Priority.DEMAND)
            wait_until(lambda: rig.engine.statistics()[0] == 3, "the dead registry to have its share")
            healthy, seen = rig.mount()
            assert rig.bytes_of(healthy, seen, 0, 5) == CONTENT[: 5 * MIB]
            assert rig.engine.statistics()[0] == 3
            dead.release()
            rig.engine.detach(mount)
    finally:
        rig.close()


def test_a_registry_that_drips_is_dropped_and_asked_again(
    rig: Rig, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then is no progress: the connection is given up, and the reader gets its bytes from the next."""
    monkeypatch.setattr(ranges, "PACE_WINDOW_S", 0.3)
    registry.script("blob", "slow@20 ok")
    port, seen = rig.mount()
    rig.want(port, 7)
    seen.wait_ready(7)

    assert seen.block(7) == expected(7)
    assert len(registry.requests("blob")) == 2


def test_tokens_and_redirects_that_end_in_the_middle_are_renewed_unseen(tmp_path: Path) -> None:
    """Revoked tokens and expired signatures cost a few requests; no reader waits for a retry, nobody is told of trouble."""
    with FaultyRegistry() as store:
        store.add_blob(CONTENT)
        registry = FaultyRegistry(tokens=Tokens(anonymous=True), object_store=store)
        registry.start()
        registry.add_blob(CONTENT)
        registry.script("blob", "redirect", forever=True)
        (tmp_path / "c").mkdir()
        rig = Rig(tmp_path / "c", registry)
        try:
            port, seen = rig.mount()
            for first in range(0, 20, 5):
                assert rig.bytes_of(port, seen, first, 5) == CONTENT[first * MIB : (first + 5) * MIB]
                assert registry.tokens is not None
                registry.revoke_tokens()
                store.expire_signatures()
            assert registry.tokens is not None
            assert registry.tokens.issued >= 4
            assert not seen.stalls
            assert port.mount.blobs[0].attempts == 0
        finally:
            rig.close()


@pytest.mark.parametrize("fault", ["no name", "no route"])
def test_a_network_that_is_gone_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Names that do not resolve and connections that are refused are a pause, which the mount reports, and no failure."""
    down = threading.Event()
    down.set()
    getaddrinfo, create_connection = socket.getaddrinfo, socket.create_connection

    def resolve(*arguments: Any, **options: Any) -> Any:
        if down.is_set() and fault == "no name":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return getaddrinfo(*arguments, **options)

    def connect(*arguments: Any, **options: Any) -> Any:
        if down.is_set():
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return create_connection(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    port, seen = rig.mount()
    rig.want(port, 4)
    seen.wait(lambda: seen.stalls, "the report")
    assert not seen.ready
    assert rig.engine.progress(port.mount, 1).stalled_since is not None
    down.clear()
    seen.wait_ready(4)

    assert seen.block(4) == expected(4)
    seen.wait(lambda: seen.stalls[-1].fault is None, "the end of the report")
    assert not seen.failed
