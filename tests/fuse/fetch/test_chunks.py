"""Blobs with a chunk index: nothing is there before its chunk is proven, whoever sent it and whatever lay on the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fuse.artifact.chunks import CHUNK_BYTES, ChunkDigests, chunk_count
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import MAX_BLOB_BYTES
from fuse.artifact.reference import Reference
from fuse.cache.index import IndexWriter, entry_of
from fuse.cache.keys import BlobKey
from fuse.cache.store import CacheStore
from fuse.fetch.blobs import BlobState
from fuse.fetch.mounts import Mount, Port
from fuse.fetch.runs import Priority, Run
from fuse.registry.access import Access, Endpoint
from fuse.registry.repository import Repository
from tests.support.fetcher import wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, DIGEST, SCOPE, Recorder, Rig, expected
from tests.support.registry import FaultyRegistry

MIB = 1024 * 1024


def digests_of(content: bytes) -> ChunkDigests:
    return ChunkDigests(
        len(content),
        b"".join(hashlib.sha256(content[at : at + CHUNK_BYTES]).digest() for at in range(0, len(content), CHUNK_BYTES)),
    )


CHUNKS = digests_of(CONTENT)
LIE = digests_of(CONTENT[:MIB] + b"lie" + CONTENT[MIB + 3 :])
WRONG = CONTENT[: 9 * MIB] + b"wrong" + CONTENT[9 * MIB + 5 :]
"""Wrong in block 9, which is in chunk 2."""


class Chunked(Rig):
    """A rig with mirrors before its registry, whose mounts bring a chunk index."""

    mirrors: Sequence[FaultyRegistry] = ()

    def source(self, registry: FaultyRegistry | None = None, repository: str = "m") -> Repository:
        endpoints = [Endpoint(url=f"{mirror.url}/v2", named=True) for mirror in self.mirrors]
        endpoints.append(Endpoint(url=f"{self.registry.url}/v2", named=True, origin=True))
        access = Access(registry=self.registry.host, endpoints=tuple(endpoints), local_allowed=True)
        return Repository(Reference.parse(f"{self.registry.host}/{repository}:v1"), access, self.transport)

    def indexed(
        self, chunks: ChunkDigests = CHUNKS, *, authentic: bool = True, granted: bool = True
    ) -> tuple[Port, Recorder]:
        port, seen = self.mount(granted=False)
        self.engine.know_chunks(port.mount, {DIGEST: chunks}, authentic=authentic)
        if granted:
            self.engine.grant(port.mount, "g", self.source())
        self.engine.open(port, 0)
        return port, seen

    def drop(self, mount: Mount, *, last: bool = True) -> None:
        """Ends a mount; its blobs are closed when this returns, if it was the last."""
        self.mounts.remove(mount)
        self.engine.detach(mount)
        if last:
            wait_until(lambda: not self.engine.shelf.states(), "the lanes to let go of the blob")


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        yield registry


@pytest.fixture
def mirror() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as mirror:
        mirror.add_blob(WRONG, digest=DIGEST)
        yield mirror


@pytest.fixture
def rig(tmp_path: Path, registry: FaultyRegistry) -> Iterator[Chunked]:
    (tmp_path / "c").mkdir()
    rig = Chunked(tmp_path / "c", registry)
    yield rig
    rig.close()


def test_a_demand_brings_its_chunk(rig: Chunked, registry: FaultyRegistry) -> None:
    """One block asked for is one chunk fetched, and with it its neighbours."""
    port, seen = rig.indexed()
    rig.want(port, 6)
    seen.wait_ready(6)

    assert seen.files is not None
    assert seen.files.has(4, 4)
    assert not seen.files.has(3)
    assert expected(6) == seen.block(6)
    assert [f"bytes={4 * MIB}-{8 * MIB - 1}"] == [entry.request.range for entry in registry.requests("blob")]


def test_the_last_chunk_is_what_is_left(rig: Chunked) -> None:
    """A blob whose size is no multiple of anything ends in a short chunk."""
    port, seen = rig.indexed()
    rig.want(port, BLOCKS - 1)
    seen.wait_ready(BLOCKS - 1)

    assert len(CONTENT) - (BLOCKS - 1) * MIB == rig.engine.progress(port.mount, 1).bytes_fetched


def test_a_mirror_that_lies_is_passed_over(rig: Chunked, registry: FaultyRegistry, mirror: FaultyRegistry) -> None:
    """The wrong chunk is asked of the registry, nobody is told of a failure, and the mirror is not asked for this blob again."""
    rig.mirrors = [mirror]
    port, seen = rig.indexed()
    rig.want(port, 0, 12)
    seen.wait_ready(*range(12))
    asked = len(mirror.requests("blob"))
    rig.want(port, 20)
    seen.wait_ready(20)

    assert b"".join(expected(block) for block in range(12)) == b"".join(seen.block(block) for block in range(12))
    assert not seen.failed
    assert asked == len(mirror.requests("blob"))
    assert registry.requests("blob")


def test_a_wrong_chunk_is_never_announced(rig: Chunked, registry: FaultyRegistry, mirror: FaultyRegistry) -> None:
    """While the registry does not answer, the mirror's good chunks are there and its wrong one is not."""
    rig.mirrors = [mirror]
    registry.script("blob", "hang", forever=True)
    port, seen = rig.indexed()
    rig.want(port, 0, 12)
    seen.wait_ready(*range(8))
    wait_until(lambda: registry._scripts and port.mount.blobs[0].distrusted, "the mirror to be distrusted")

    assert seen.files is not None
    assert not any(seen.files.has(block) for block in range(8, 12))
    assert not any((0, block) in seen.ready for block in range(8, 12))


def test_wrong_bytes_from_everywhere_are_an_error(
    rig: Chunked, registry: FaultyRegistry, mirror: FaultyRegistry
) -> None:
    """The registry is asked twice, then the reader is told, and the mount's progress says why."""
    registry.add_blob(WRONG, digest=DIGEST)
    rig.mirrors = [mirror]
    port, seen = rig.indexed()
    rig.want(port, 9)
    seen.wait(lambda: seen.failed, "the failure")

    assert "corrupt" == seen.failed[0].fault.kind
    assert 2 == len(registry.requests("blob"))
    failed_by = rig.engine.progress(port.mount, 1).failed_by
    assert failed_by is not None
    assert "chunk 2" in failed_by.what
    rig.want(port, 0)
    assert seen.files is not None
    assert not seen.files.has(8, 4)


def test_one_bad_answer_of_the_registry_is_not_the_end(rig: Chunked, registry: FaultyRegistry) -> None:
    """A flipped bit on the way costs one more request."""
    registry.script("blob", "corrupt")
    port, seen = rig.indexed()
    rig.want(port, 9)
    seen.wait_ready(9)

    assert expected(9) == seen.block(9)


def test_small_blobs_too_are_asked_of_the_next_host(
    rig: Chunked, registry: FaultyRegistry, mirror: FaultyRegistry
) -> None:
    """They need no index: a mirror's wrong bytes are no reason to fail while the registry has the right ones."""
    small = CONTENT[: MIB + 5]
    registry.add_blob(small)
    mirror.add_blob(small[:-1] + b"!", digest=Digest.of(small))
    rig.mirrors = [mirror]
    port, seen = rig.mount(Digest.of(small), len(small))
    rig.want(port, 0)
    seen.wait_ready(0)

    assert small[:MIB] == seen.block(0)


def test_what_was_cached_before_is_proven_from_the_disk(rig: Chunked, registry: FaultyRegistry) -> None:
    """Without a request, when it is right."""
    first, before = rig.mount()
    rig.want(first, 0, 12)
    before.wait_ready(*range(12))
    asked = len(registry.requests("blob"))
    port, seen = rig.indexed()
    assert before.files is not None
    assert not before.files.has(0)  # for everybody, until it is proven
    rig.want(port, 0, 12)
    seen.wait_ready(*range(12))

    assert asked == len(registry.requests("blob"))
    assert expected(9) == seen.block(9)


def test_an_index_of_terabytes_of_nothing_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may push an artifact may claim 4 TiB: only what is there of it is looked at, while everybody waits for the lock."""
    looked_at: list[int] = []
    is_marked = IndexWriter.is_marked

    def counted(index: IndexWriter, block: int, proof: int) -> bool:
        looked_at.append(block)
        return is_marked(index, block, proof)

    monkeypatch.setattr(IndexWriter, "is_marked", counted)
    chunks = ChunkDigests(size := MAX_BLOB_BYTES, bytes(32 * chunk_count(size)))
    blob = BlobState(BlobKey(DIGEST, size, SCOPE))
    blob.chunks = chunks
    writer = CacheStore(tmp_path).open(blob.key)
    try:
        writer.index.publish(9, 1 << 63)
        assert [(9, 1)] == blob.adopt(writer, {5})
        assert {5} == blob.unproven
        assert [8, 9, 10, 11, 20, 21, 22, 23] == looked_at
    finally:
        writer.close()


def test_what_is_taken_back_is_so_on_the_disk_too(rig: Chunked) -> None:
    """Whoever opens the cache next, and be it a version that knows of no index, does not find it there."""
    port, seen = rig.mount()
    rig.want(port, 0, 12)
    seen.wait_ready(*range(12))
    rig.engine.revoke(port.mount, "g")
    late, _ = rig.indexed(granted=False)
    rig.drop(late.mount, last=False)
    rig.drop(port.mount)
    _, found = rig.mount(granted=False)

    assert found.files is not None
    assert not any(found.files.has(block) for block in range(12))


def test_what_was_damaged_before_is_fetched_again(rig: Chunked, registry: FaultyRegistry) -> None:
    """Bytes on the disk that match their checksum but not the index never come out: a mirror's, from before the index."""
    port, seen = rig.mount()
    rig.want(port, 0, 12)
    seen.wait_ready(*range(12))
    writer = port.mount.blobs[0].writer
    assert writer is not None
    writer.write(9, memoryview(WRONG[9 * MIB : 10 * MIB]))
    writer.index.publish(9, entry_of(WRONG[9 * MIB : 10 * MIB]))
    registry.log.clear()
    late, found = rig.indexed()
    rig.want(late, 0, 12)
    found.wait_ready(*range(12))

    assert b"".join(expected(block) for block in range(12)) == b"".join(found.block(block) for block in range(12))
    assert [f"bytes={8 * MIB}-{12 * MIB - 1}"] == [entry.request.range for entry in registry.requests("blob")]


def test_proof_outlives_the_process_and_ends_with_the_bytes(tmp_path: Path, registry: FaultyRegistry) -> None:
    """A restart takes proven blocks as they are; what another version wrote over them meanwhile is proven anew."""
    (tmp_path / "c").mkdir()
    rig = Chunked(tmp_path / "c", registry)
    port, seen = rig.indexed()
    rig.want(port, 0, 12)
    seen.wait_ready(*range(12))
    rig.drop(port.mount)
    # A version that knows no marks: it writes data and entry.
    plain, _ = rig.mount(granted=False)
    writer = plain.mount.blobs[0].writer
    assert writer is not None
    wrong = memoryview(WRONG[9 * MIB : 10 * MIB])
    writer.write(9, wrong)
    writer.record(9, entry_of(wrong))
    writer.index.publish(9, entry_of(wrong))
    rig.drop(plain.mount)
    again, found = rig.indexed(granted=False)

    try:
        assert found.files is not None
        assert found.files.has(0, 8)
        assert not found.files.has(9)
        rig.engine.grant(again.mount, "g", rig.source())
        rig.want(again, 8, 4)
        found.wait_ready(9)
        assert expected(9) == found.block(9)
    finally:
        rig.close()


def test_a_lie_harms_only_those_who_brought_it(rig: Chunked) -> None:
    """A mount with another artifact's false index gets no byte; one without it reads on."""
    honest, reads = rig.mount()
    liar, refused = rig.indexed(LIE)
    rig.want(liar, 1)
    refused.wait(lambda: refused.quarantined, "the refusal")
    rig.want(honest, 1)
    reads.wait_ready(1)
    rig.want(liar, 1)
    refused.wait(lambda: refused.failed, "later demands to fail as well")

    assert expected(1) == reads.block(1)
    assert not reads.failed
    assert not reads.quarantined
    assert not refused.ready


def test_the_blobs_digest_has_the_last_word(rig: Chunked, registry: FaultyRegistry) -> None:
    """An index and a registry that agree on wrong bytes end in quarantine."""
    registry.add_blob(WRONG, digest=DIGEST)
    port, seen = rig.indexed(digests_of(WRONG))
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    seen.wait(lambda: seen.quarantined, "the quarantine")

    assert "chunk index" in seen.quarantined[0].fault.what


def test_a_full_cache_lends_only_what_is_proven(
    tmp_path: Path, registry: FaultyRegistry, mirror: FaultyRegistry
) -> None:
    """Loans of an indexed blob come from chunks that were compared as a whole."""
    (tmp_path / "c").mkdir()
    rig = Chunked(tmp_path / "c", registry, quota_bytes=1)
    rig.mirrors = [mirror]
    try:
        port, seen = rig.indexed()
        rig.want(port, 9)
        seen.wait(lambda: 9 in seen.loans, "the loan")
        assert expected(9) == seen.loans[9]
    finally:
        rig.close()


def test_a_server_without_ranges_is_proven_as_it_streams(rig: Chunked, registry: FaultyRegistry) -> None:
    """The whole blob comes in one answer; each of its chunks is compared."""
    registry.script("blob", "no-range", forever=True)
    port, seen = rig.indexed()
    rig.want(port, 30)
    seen.wait_ready(30)
    rig.want(port, 0, BLOCKS)
    seen.wait_ready(*range(BLOCKS))

    assert CONTENT == b"".join(seen.block(block) for block in range(BLOCKS))


def test_an_index_that_comes_in_the_middle_of_a_transfer_counts_at_once(rig: Chunked, registry: FaultyRegistry) -> None:
    """A run that was begun without it announces nothing more; its blocks come proven."""
    registry.script("blob", f"stall@{2 * MIB + 100}")
    first, before = rig.mount()
    rig.want(first, 0, 12)
    before.wait_ready(0, 1)
    rig.engine.know_chunks(first.mount, {DIGEST: CHUNKS}, authentic=True)
    registry.release()
    rig.want(first, 0, 12)
    before.wait(lambda: before.ready.count((0, 1)) > 1, "block 1 to be proven and announced again")
    before.wait_ready(*range(12))
    writer = first.mount.blobs[0].writer
    assert writer is not None

    assert all(writer.index.is_marked(block, CHUNKS.mark) for block in range(12))


def test_random_demands_get_right_bytes(rig: Chunked, mirror: FaultyRegistry, registry: FaultyRegistry) -> None:
    """Wishes of all kinds over a lying mirror, a registry that cuts, and an index that comes late."""
    import random

    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = random.Random(seed)
    rig.mirrors = [mirror]
    registry.script("blob", "cut@3000000 503 cut@5000000 cut@100 429;0")
    ports: list[tuple[Port, Recorder, list[int]]] = []
    for number in range(4):
        port, seen = rig.mount() if number == 0 else rig.indexed()
        wanted: list[int] = []
        for _ in range(10):
            block, count = generator.randrange(BLOCKS), generator.choice((1, 1, 3, 9))
            priority = generator.choice((Priority.DEMAND, Priority.READAHEAD, Priority.BACKGROUND))
            rig.want(port, block, count, priority)
            if priority is Priority.DEMAND:
                wanted += range(block, min(block + count, BLOCKS))
        ports.append((port, seen, wanted))
    for port, seen, wanted in ports:
        for block in wanted:
            rig.want(port, block)
        seen.wait_ready(*wanted)
    for _, seen, wanted in ports[1:]:
        for block in wanted:
            assert expected(block) == seen.block(block)


def test_nothing_unproven_becomes_present_behind_an_index(rig: Chunked) -> None:
    """A lane that learns of the index too late announces to nobody what it has written without it."""
    port, seen = rig.indexed(granted=False)
    blob = port.mount.blobs[0]
    run: Run[Any] = Run(port, blob, 0, 4, Priority.DEMAND)
    rig.engine.arrivals.publish(run, 0, entry_of(expected(0)))
    rig.engine.arrivals.lend(run, 1, memoryview(expected(1)))

    assert seen.files is not None
    assert not seen.files.has(0)
    assert 0 == run.next


def test_who_wants_the_whole_is_told_when_it_is_verified(rig: Chunked) -> None:
    """Once, after all has come and matched; at once when it was verified before."""
    port, seen = rig.mount()
    rig.engine.want_whole(port, 0)
    seen.wait(lambda: seen.whole, "the verification")
    assert seen.files is not None
    assert seen.files.verified
    rig.engine.want_whole(port, 0)
    seen.wait(lambda: 2 == seen.whole, "the second answer")


def test_who_wants_the_whole_learns_that_it_cannot_be_had(rig: Chunked, registry: FaultyRegistry) -> None:
    """As a demand does."""
    registry.script("blob", "404", forever=True)
    port, seen = rig.mount()
    rig.engine.want_whole(port, 0)
    seen.wait(lambda: seen.failed, "the failure")

    assert "not_found" == seen.failed[0].fault.kind
    assert not seen.whole


@pytest.mark.parametrize("live", [True, False])
def test_a_strict_reader_sees_a_verified_blob_lose_a_block(rig: Chunked, live: bool) -> None:
    """Before the block is fetched anew: what comes in its place is as unproven as it was. Who does not ask has a copy."""
    first, before = rig.mount()
    rig.engine.want_whole(first, 0)
    before.wait(lambda: before.whole, "the verification")
    rig.drop(first.mount)
    port, _ = rig.mount(granted=False)
    late = Recorder()
    rig.recorders.append(late)
    rig.engine.open(rig.engine.open_port(port.mount, late), 0, live=live)
    assert late.files is not None
    assert late.files.verified
    writer = port.mount.blobs[0].writer
    assert writer is not None
    writer.write(9, memoryview(WRONG[9 * MIB : 10 * MIB]))
    rig.engine.damaged(port, 0, 9, 1)

    assert late.files.verified is not live
    assert late.files.has(9) is not live


def test_proof_from_the_disk_is_no_sign_of_the_registry(rig: Chunked, registry: FaultyRegistry) -> None:
    """Bytes that lay in the cache do not end the trouble of a registry that is down."""
    port, seen = rig.mount()
    rig.want(port, 0, 4)
    seen.wait_ready(*range(4))
    registry.script("blob", "503", forever=True)
    rig.want(port, 20)
    blob = port.mount.blobs[0]
    wait_until(lambda: blob.stall, "the stall")
    rig.engine.know_chunks(port.mount, {DIGEST: CHUNKS}, authentic=True)
    seen.ready.clear()
    rig.want(port, 0, 4)
    seen.wait_ready(*range(4))

    assert blob.stall is not None
    assert not any(stall.fault is None for stall in seen.stalls)
