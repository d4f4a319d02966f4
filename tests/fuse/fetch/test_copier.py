"""Large members of archives become files: after everything else, into room that is free, and right or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse.artifact.digest import Digest
from fuse.cache.copies import KIND, Copies, CopyWriter
from fuse.cache.index import BLOCK_BYTES, COMPLETE, VERIFIED, entry_of
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.pins import mount_pin
from fuse.cache.store import CacheStore
from fuse.errors import NotFound
from fuse.fetch import copier, protocol
from fuse.fetch.blobs import BlobState
from fuse.fetch.copier import Copier
from fuse.fetch.dispatch import Dispatcher
from fuse.fetch.engine import Engine
from fuse.fetch.inventory import Inventory
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.wholes import Wholes, keys_of
from fuse.filesystem import native
from fuse.filesystem.native import Section
from fuse.filesystem.table import Blob, Node, Table
from tests.support.waiting import until

REGISTRY = "registry.example"
CONTENT = os.urandom(3 * BLOCK_BYTES + 5000)
OTHER = os.urandom(50_000)
LARGE = Section(0, 512, BLOCK_BYTES + 4096)
LAST = Section(0, LARGE.offset + LARGE.size + 512, len(CONTENT) - LARGE.size - 2048)
SMALL = Section(0, 100, 300)


def table_of(*sections: Section) -> Table:
    blobs = tuple(Blob(str(Digest.of(content)), len(content), "tar") for content in (CONTENT, OTHER))
    nodes = [Node(1, f"f{number}", "f", 0o444, 0, at.size, at.blob, at.offset) for number, at in enumerate(sections)]
    whole = Node(1, "whole", "f", 0o444, 0, len(OTHER), 1, 0)
    return Table(artifacts=(), blobs=blobs, nodes=(Node(1, "", "d", 0o555, 0), *nodes, whole))


TABLE = table_of(LARGE, SMALL, LAST, LARGE)
TAR, RAW = keys_of(TABLE, REGISTRY)


class Rig:
    """A cache with a copier. Nothing is fetched; blobs are written as if they had been."""

    def __init__(self, root: Path, **settings: Any) -> None:
        root.mkdir(exist_ok=True)
        self.store = CacheStore(root)
        self.engine = Engine(self.store, FetcherSettings(free_space_fraction=0.0, **settings))
        self.wholes = Wholes(self.engine.shelf)
        self.copier = Copier(self.engine.shelf, self.engine.dispatch)
        self.copier.start()

    def bring(self, content: bytes) -> BlobKey:
        """The whole blob is there, verified."""
        key = BlobKey(Digest.of(content), len(content), scope_of(REGISTRY))
        writer = self.store.open(key)
        for block in range(-(-key.size // BLOCK_BYTES)):
            piece = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            writer.write(block, memoryview(piece))
            writer.index.publish(block, entry_of(piece))
        writer.index.set_flags(COMPLETE | VERIFIED)
        writer.sync()
        writer.close()
        self.engine.shelf.space.recount()
        self.engine.shelf.on_verified(BlobState(key))
        return key

    def shown(self) -> dict[Section, BlobKey]:
        return dict(self.wholes.shown_by(TABLE, [TAR, RAW], copies=True) or {})

    def copies(self) -> list[BlobKey]:
        return [key for key in list(self.store.keys()) if key.is_copy]

    def unfinished(self) -> list[Path]:
        return list(self.store.directory("sha256").glob(".*"))

    def until_idle(self) -> None:
        """What was asked for before has been done, or given up."""
        for _ in range(
            2
        ):  # the first may be taken together with what came before, the second is not before that is done
            self.copier.consider(table_of(), [])
            until(lambda: not self.copier._asked, "the copier has taken it")

    def consider(self) -> None:
        self.copier.consider(TABLE, [TAR, RAW])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAX_INLINE_BYTES", 1000)
    monkeypatch.setattr(copier, "_REST_S", 0.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "cache")
    yield made
    made.copier.close()
    made.copier.join()


def test_large_members_become_files(rig: Rig) -> None:
    """Each once, whatever its names; small ones do not. The whole is shown by the kernel then, and what is shown is pinned."""
    rig.bring(CONTENT)
    rig.bring(OTHER)
    assert {} == rig.shown()
    rig.consider()
    until(rig.shown, "the copies are there")
    assert {LARGE, LAST} == set(rig.shown())
    for section, key in rig.shown().items():
        assert CONTENT[section.offset : section.offset + section.size] == rig.store.paths(key)[0].read_bytes()
    assert set(rig.shown().values()) == set(rig.copies())
    whole = rig.wholes.pin("m1", TABLE, [TAR, RAW], copies=True, request_id=7)
    assert {rig.store.place(key) for key in rig.copies()} == {copy.name for copy in whole.copies}
    assert {*map(str, rig.copies()), str(TAR), str(RAW)} == rig.engine.shelf.pins.pinned_as(mount_pin("m1"))


def test_who_knows_no_copies_is_told_of_none(rig: Rig) -> None:
    """A holder of an earlier version would read all of it into memory."""
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    until(rig.shown, "the copies are there")
    assert rig.wholes.shown_by(TABLE, [TAR, RAW], copies=False) is None
    with pytest.raises(NotFound):
        rig.wholes.pin("m1", TABLE, [TAR, RAW], copies=False, request_id=7)
    assert {} == rig.wholes.shown_by(table_of(SMALL), [TAR, RAW], copies=False)


def test_nothing_is_copied_of_what_is_not_whole(rig: Rig) -> None:
    """Also if the part that is missing needs no copies: nobody could mount it natively. The last blob begins it."""
    rig.consider()
    rig.bring(CONTENT)
    until(lambda: rig.copier._waiting and not rig.copier._verified, "the copier has seen it")
    assert [{RAW}] == list(rig.copier._waiting.values())
    assert [] == rig.copies()
    rig.bring(OTHER)
    until(rig.shown, "the copies are there")


def test_only_what_is_missing_is_copied_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    until(rig.shown, "the copies are there")
    made: list[int] = []
    monkeypatch.setattr(copier, "CopyWriter", lambda store, of, size: made.append(size) or CopyWriter(store, of, size))
    rig.consider()
    rig.until_idle()
    rig.store.remove(rig.shown()[LAST])
    rig.consider()
    until(rig.shown, "the copies are there again")
    assert [LAST.size] == made


def test_what_is_forgotten_is_found_again(rig: Rig) -> None:
    """Which part a copy is may be lost; the copies are not doubled by that."""
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    until(rig.shown, "the copies are there")
    before = sorted(map(str, rig.copies()))
    for name in rig.store.objects.keys(KIND):
        rig.store.objects.remove(KIND, name)
    assert {} == rig.shown()
    rig.consider()
    until(rig.shown, "the copies are known again")
    assert before == sorted(map(str, rig.copies()))


def test_no_copy_is_made_into_room_that_others_may_need(tmp_path: Path) -> None:
    """As much as it takes has to stay free beside it; and nothing is evicted, however long nobody has used it."""
    room = len(CONTENT) + len(OTHER) + 2 * (LARGE.size + LAST.size)
    for quota, expected in ((room - 200_000, False), (room + 200_000, True)):
        rig = Rig(tmp_path / str(quota), quota_bytes=quota)
        for content in (CONTENT, OTHER):
            rig.bring(content)
        rig.consider()
        until(rig.shown, "the copies are there") if expected else rig.until_idle()
        assert expected == bool(rig.copies())
        assert {TAR, RAW} <= set(rig.store.keys())
        rig.copier.close()
        rig.copier.join()


def test_when_the_room_goes_the_copy_goes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is written, and somebody else takes the rest: what it had taken is free again."""
    for content in (CONTENT, OTHER):
        rig.bring(content)
    space = rig.engine.shelf.space
    before = space.used_bytes
    asked: list[int] = []
    real = space.take_free

    def take(wanted: int) -> bool:
        asked.append(wanted)
        return len(asked) < 2 and real(wanted)

    monkeypatch.setattr(space, "take_free", take)
    rig.consider()
    rig.until_idle()
    assert 2 == len(asked)
    assert (before, []) == (space.used_bytes, rig.copies())
    assert 0 == space._reserved_bytes


def test_whatever_is_fetched_goes_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block: it stops where something comes in between, and goes on afterwards."""
    asked = threading.Semaphore(0)
    free = threading.Event()

    def busy(_: Dispatcher) -> bool:
        asked.release()
        return not free.is_set()

    monkeypatch.setattr(Dispatcher, "busy", property(busy))
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    for _ in range(3):
        assert asked.acquire(timeout=10)
    assert [] == rig.copies()
    assert [0] == [path.stat().st_size for path in rig.unfinished()]
    free.set()
    until(rig.shown, "the copies are there")


def test_the_end_of_the_process_does_not_wait_for_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a copy, while something is fetched."""
    asked = threading.Event()
    monkeypatch.setattr(Dispatcher, "busy", property(lambda _: asked.set() or True))
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    assert asked.wait(10)
    rig.copier.close()
    rig.copier.join(10)
    assert not rig.copier.is_alive()
    assert ([], []) == (rig.unfinished(), rig.copies())


def test_damage_of_the_disk_is_not_copied(rig: Rig) -> None:
    """What was verified is compared once more: a copy has a digest of its own, which would vouch for the damage."""
    for content in (CONTENT, OTHER):
        rig.bring(content)
    data = rig.store.paths(TAR)[0]
    data.chmod(0o644)
    with data.open("r+b") as file:
        file.seek(BLOCK_BYTES + 17)
        file.write(bytes([CONTENT[BLOCK_BYTES + 17] ^ 1]))
    rig.consider()
    rig.until_idle()
    assert [] == rig.copies()


def test_a_blob_that_goes_meanwhile_leaves_no_copy(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (CONTENT, OTHER):
        rig.bring(content)
    real = CopyWriter.seal

    def seal(writer: CopyWriter) -> BlobKey:
        key = real(writer)
        rig.store.remove(TAR)
        return key

    monkeypatch.setattr(CopyWriter, "seal", seal)
    rig.consider()
    until(lambda: TAR not in set(rig.store.keys()), "it has come so far")
    rig.until_idle()
    assert [RAW] == list(rig.store.keys())


def listed(rig: Rig) -> dict[str, protocol.CachedBlob]:
    return {blob.digest: blob for blob in Inventory(rig.engine).blobs()}


def test_the_cache_tells_what_is_a_copy_and_takes_it_away_with_its_blob(rig: Rig) -> None:
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    until(rig.shown, "the copies are there")
    copies = {str(key.digest) for key in rig.copies()}
    assert {digest: (digest in copies, str(TAR.digest) if digest in copies else "") for digest in listed(rig)} == {
        digest: (blob.copy, blob.copy_of) for digest, blob in listed(rig).items()
    }
    removed = {blob.digest for blob in Inventory(rig.engine).remove((str(TAR.digest),))}
    assert copies | {str(TAR.digest)} == removed
    assert [RAW] == list(rig.store.keys())


def test_a_damaged_copy_is_found_and_removed(rig: Rig) -> None:
    """Nobody would fetch what is missing of it. It is made anew, from its blob."""
    for content in (CONTENT, OTHER):
        rig.bring(content)
    rig.consider()
    until(rig.shown, "the copies are there")
    key = rig.shown()[LARGE]
    data = rig.store.paths(key)[0]
    data.chmod(0o644)
    data.write_bytes(bytes(key.size))
    damaged = {blob.digest for blob in Inventory(rig.engine).verify((), threading.Event()) if blob.damaged_blocks}
    assert {str(key.digest)} == damaged
    assert key not in rig.copies()
    rig.consider()
    until(rig.shown, "the copies are there again")
    assert {LARGE, LAST} == set(rig.shown())
    assert Copies(rig.store.objects).of(TAR)[LARGE.offset, LARGE.size] == key


def test_as_many_as_are_shown_can_be_named_in_a_message(rig: Rig) -> None:
    """Also where every number is long. More is refused, before anything is pinned: it would end the connection."""
    size = 1 << 44
    for blobs, copies, digest in ((1000, 0, "sha256"), (334, 333, "sha256"), (1000, 0, "sha512")):
        keys = [BlobKey(Digest.of(bytes([n % 256]), digest), size, scope_of(REGISTRY)) for n in range(blobs)]
        shown = {Section(n, size - n, size): BlobKey(TAR.digest, size, TAR.scope) for n in range(copies)}
        pin = mount_pin("a" * 24)
        if digest == "sha256":
            assert blobs + 2 * copies <= native.MAX_NAMED
            assert copies == len(rig.wholes._named(pin, keys, shown, 1 << 31).copies)
        else:
            with pytest.raises(NotFound, match="too many names"):
                rig.wholes._named(pin, keys, shown, 1 << 31)
