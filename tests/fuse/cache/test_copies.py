"""Parts of blobs as files of their own: whole or not there, and blobs in everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse.artifact.digest import Digest
from fuse.cache.blob import CachedBlob
from fuse.cache.copies import Copies, CopyWriter
from fuse.cache.index import BLOCK_BYTES
from fuse.cache.keys import BlobKey, scope_of, scope_of_copies
from fuse.cache.quota import Candidate, victims
from fuse.cache.store import CacheStore

SCOPE = scope_of("registry.example")
TAR = BlobKey(Digest.of(b"tar"), 10 * BLOCK_BYTES, SCOPE)
CONTENT = os.urandom(2 * BLOCK_BYTES + 777)


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    (tmp_path / "cache").mkdir()
    return CacheStore(tmp_path / "cache")


def files(store: CacheStore) -> list[str]:
    return sorted(path.name for path in store.directory("sha256").iterdir())


def copied(store: CacheStore, content: bytes = CONTENT, *, size: int | None = None, pieces: int = 100_000) -> BlobKey:
    writer = CopyWriter(store, TAR, len(content) if size is None else size)
    try:
        for at in range(0, len(content), pieces):
            writer.append(memoryview(content)[at : at + pieces])
        key = writer.seal()
        writer.publish(key)
    finally:
        writer.close()
    return key


@pytest.mark.parametrize("length", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 777])
@pytest.mark.parametrize("pieces", [100_000, BLOCK_BYTES, 4 * BLOCK_BYTES])
def test_a_copy_is_a_blob_that_is_whole(store: CacheStore, length: int, pieces: int) -> None:
    """Named by its own digest, in the scope of copies; every block matches its checksum."""
    content = CONTENT[:length]
    key = copied(store, content, pieces=pieces)
    assert BlobKey(Digest.of(content), length, scope_of_copies(SCOPE)) == key
    assert [key] == list(store.keys())
    stored = store.stored(key)
    assert stored is not None
    assert (True, True, length) == (stored.complete, stored.verified, stored.bytes_cached)
    data, index = store.paths(key)
    assert {0o444} == {path.stat().st_mode & 0o777 for path in (data, index)}
    blob = CachedBlob(os.open(data, os.O_RDONLY), os.open(index, os.O_RDONLY))
    assert content == b"".join(blob.read_block(block) or b"" for block in range(blob.blocks))
    assert blob.verified
    blob.close()


def test_what_is_not_finished_takes_room_and_goes(store: CacheStore, tmp_path: Path) -> None:
    """It is counted and cannot be evicted while it is made; given up, or left by a process that was killed, it is gone."""
    writer = CopyWriter(store, TAR, len(CONTENT))
    writer.append(memoryview(CONTENT))
    (unfinished,) = store.candidates(frozenset())
    assert (True, True) == (unfinished.pinned, unfinished.disk_bytes >= 2 * BLOCK_BYTES)
    assert [] == list(store.keys())
    assert 1 == len(files(store))
    CacheStore(tmp_path / "cache")  # the next start, as nobody has closed it
    assert [] == files(store)
    writer.close()
    with pytest.raises(ValueError, match="a copy of"):
        copied(store, size=len(CONTENT) + 1)
    assert [] == files(store)


def test_the_same_part_copied_again_takes_its_place(store: CacheStore) -> None:
    """Who reads the old one reads on."""
    key = copied(store)
    with store.paths(key)[0].open("rb") as reader:
        assert key == copied(store)
        assert CONTENT == reader.read()
    assert CONTENT == store.paths(key)[0].read_bytes()
    assert 2 == len(files(store))


def test_which_part_it_is_is_remembered(store: CacheStore) -> None:
    copies = Copies(store.objects)
    assert {} == copies.of(TAR)
    key = copied(store)
    copies.remember(TAR, {(512, key.size): key})
    assert {(512, key.size): key} == Copies(store.objects).of(TAR)
    assert {key: TAR} == copies.sources()
    other = BlobKey(TAR.digest, TAR.size, scope_of("other.example"))
    assert {} == copies.of(other)


def test_no_registry_has_the_scope_of_copies() -> None:
    """And copies of one registry's blobs are not another's."""
    scopes = {scope_of_copies(scope_of(host)) for host in ("a.example", "b.example")}
    assert 2 == len(scopes)
    keys = [BlobKey.parse(f"{TAR.digest}.1.{scope}") for scope in (*scopes, SCOPE)]
    assert [True, True, False] == [key.is_copy for key in keys]


def test_copies_are_evicted_before_blobs(store: CacheStore) -> None:
    """The least recently used copy first; never one that is pinned, as a mounted one is."""
    key = copied(store)
    (candidate,) = store.candidates(frozenset())
    assert (str(key), True, False) == (candidate.name, candidate.copy, candidate.pinned)
    blob = Candidate(name="blob", disk_bytes=1, used_at=1, pinned=False)
    old, new = (Candidate(name=f"copy-{at}", disk_bytes=1, used_at=at, pinned=False, copy=True) for at in (2, 3))
    mounted = Candidate(name="mounted", disk_bytes=1, used_at=0, pinned=True, copy=True)
    bad = Candidate(name="bad", disk_bytes=1, used_at=9, pinned=False, rejected=True)
    everything = (blob, new, mounted, old, bad)
    assert [bad, old, new, blob] == victims(everything, 99)
    assert [bad, old] == victims(everything, 2)
