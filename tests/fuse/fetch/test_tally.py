"""What the fetcher counts of what it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from fuse.cache.quota import Candidate, Disk, Limits
from fuse.cache.store import CacheStore
from fuse.fetch.runs import Priority
from fuse.fetch.space import Space
from fuse.fetch.tally import Tally
from tests.support.fetchrig import CONTENT, DIGEST, MIB, Rig
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    registry = FaultyRegistry()
    registry.start()
    registry.add_blob(CONTENT, digest=DIGEST)
    made = Rig(tmp_path, registry)
    yield made
    made.close()


def test_bytes_are_counted_by_source_and_purpose_and_blobs_by_their_end(rig: Rig, tmp_path: Path) -> None:
    """What a reader waited for, what came ahead; the registry itself; a blob that was verified, a block that was damaged."""
    port, seen = rig.mount()
    rig.want(port, 0)
    seen.wait_ready(0)
    rig.want(port, 0, 41, Priority.BACKGROUND)
    until(lambda: rig.engine.tally.counts().get("blobs_verified") == 1, "the blob is verified")
    counts = rig.engine.totals().counts
    assert counts["bytes_demand"] >= MIB
    assert counts["bytes_demand"] + counts["bytes_background"] == len(CONTENT)
    assert counts["bytes_from_registry"] >= len(CONTENT)
    assert "bytes_from_mirror" not in counts
    assert seen.files is not None
    (data,) = (path for path in tmp_path.rglob("*.data"))
    with data.open("r+b") as file:
        file.write(bytes(255 - byte for byte in CONTENT[:100]))
    rig.engine.damaged(port, 0, 0, 1)
    assert rig.engine.tally.counts()["blocks_damaged"] == 1
    room = rig.engine.totals().cache
    assert room is not None
    assert room.disk_bytes > room.disk_free_bytes > 0


def test_wrong_content_is_counted(tmp_path: Path) -> None:
    """Of a blob that is not what its digest says."""
    registry = FaultyRegistry()
    registry.start()
    registry.add_blob(b"x" + CONTENT[1:], digest=DIGEST)
    rig = Rig(tmp_path, registry)
    try:
        port, _ = rig.mount()
        rig.want(port, 0, 41, Priority.BACKGROUND)
        until(lambda: rig.engine.tally.counts().get("blobs_rejected") == 1, "the blob is set aside")
    finally:
        rig.close()


class Store:
    """A full disk with one blob on it that nobody uses."""

    def used_bytes(self) -> int:
        return 10

    def disk(self) -> Disk:
        return Disk(total_bytes=100, free_bytes=100)

    def candidates(self, _pinned: frozenset[str]) -> list[Candidate]:
        return [Candidate(name="a", disk_bytes=10, used_at=0, pinned=False)]

    def evict(self, _candidate: Candidate) -> None:
        """Gone."""


def test_what_makes_room_is_counted() -> None:
    """How many, and how large."""
    tally = Tally()
    space = Space(cast("CacheStore", Store()), Limits(quota_bytes=10, free_space_fraction=0), frozenset, tally)
    assert space.reserve(5, least=5) == 5
    assert tally.counts() == {"blobs_evicted": 1, "bytes_evicted": 10}
    room = space.room()
    assert room is not None
    assert (room.used_bytes, room.quota_bytes, room.disk_bytes) == (0, 10, 100)
