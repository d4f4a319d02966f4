"""The cache directory: what survives, what is refused, what is removed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from fuse.artifact.digest import Digest
from fuse.cache.index import BLOCK_BYTES, COMPLETE, REJECTED, entry_of
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.store import CacheStore
from fuse.errors import InvalidConfig

CONTENT = b"x" * (BLOCK_BYTES + 5)
SCOPE = scope_of("registry.example/models/tiny")
KEY = BlobKey(Digest.of(CONTENT), len(CONTENT), SCOPE)


def filled(store: CacheStore, key: BlobKey = KEY) -> None:
    writer = store.open(key)
    for block in range(2):
        content = memoryview(CONTENT)[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        writer.write(block, content)
        writer.record(block, entry_of(content))
        writer.index.publish(block, entry_of(content))
    writer.index.set_flags(COMPLETE)
    writer.close()


def test_a_blob_is_found_again(tmp_path: Path) -> None:
    """Blocks that were published are there for the next process, read-only on disk."""
    filled(CacheStore(tmp_path))
    writer = CacheStore(tmp_path).open(KEY)

    assert writer.index.has(0, 2)
    assert writer.block_is_sound(1, memoryview(bytearray(BLOCK_BYTES)))
    writer.close()
    for path in CacheStore(tmp_path).paths(KEY):
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "blobs" / "sha256").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_the_owner_reopens_its_read_only_files_without_privileges(tmp_path: Path) -> None:
    """0444 files are opened for writing again by their unprivileged owner, and are 0444 afterwards."""
    tmp_path.chmod(0o755)
    cache = tmp_path / "c"
    cache.mkdir()
    os.chown(cache, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(cache)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            filled(CacheStore(Path()))
            again = CacheStore(Path()).open(KEY)
            again.write(0, memoryview(CONTENT)[:BLOCK_BYTES])
            modes = {stat.S_IMODE(path.stat().st_mode) for path in CacheStore(Path()).paths(KEY)}
            code = 0 if again.index.has(0, 2) and modes == {0o444} else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0


def test_a_blob_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step fails, as on a disk that becomes full or read-only: no descriptor is kept, and no file."""
    store = CacheStore(tmp_path)
    data, index = store.paths(KEY)

    def fails(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "as the test says")

    before = sorted(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="as the test says"):
        store.open(KEY)

    assert before == sorted(Path("/proc/self/fd").iterdir())
    assert [] == [*data.parent.iterdir(), *index.parent.iterdir()]


@pytest.mark.parametrize("damage", ["index-gone", "index-empty", "data-gone", "data-short", "other-digest", "rejected"])
def test_what_does_not_fit_together_is_made_anew(tmp_path: Path, damage: str) -> None:
    """After any cut the blob opens, empty, and never with another's or torn content."""
    store = CacheStore(tmp_path)
    filled(store)
    data, index = store.paths(KEY)
    if damage == "index-gone":
        index.unlink()
    elif damage == "index-empty":
        index.chmod(0o644)
        index.write_bytes(b"")
    elif damage == "data-gone":
        data.unlink()
    elif damage == "data-short":
        os.truncate(data, 5)
    elif damage == "other-digest":
        other = BlobKey(Digest.of(b"other"), KEY.size, SCOPE)
        filled(store, other)
        store.paths(other)[1].replace(index)
    else:
        writer = store.open(KEY)
        writer.index.set_flags(REJECTED)
        writer.record_flags()
        writer.close()
    writer = CacheStore(tmp_path).open(KEY)

    assert writer.index.count_present() == 0
    assert writer.index.flags == 0
    writer.close()


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    """Data without an index and temporary files do not stay for ever."""
    store = CacheStore(tmp_path)
    data, index = store.paths(KEY)
    data.write_bytes(b"half")
    index.with_name("." + index.name).write_bytes(b"half")
    CacheStore(tmp_path)

    assert list(data.parent.iterdir()) == []


def test_a_newer_cache_is_refused(tmp_path: Path) -> None:
    """A layout that this program does not know is left alone, with a clear word."""
    CacheStore(tmp_path)
    (tmp_path / "version").write_text("2\n")
    with pytest.raises(InvalidConfig, match=r"version 2.*knows version 1"):
        CacheStore(tmp_path)


def test_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    """A home directory named by mistake is not turned into a cache."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InvalidConfig, match=r"thesis\.tex"):
        CacheStore(tmp_path)

    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_lie_about_the_size_is_another_blob(tmp_path: Path) -> None:
    """Two manifests that disagree on a blob's size do not get into each other's way."""
    store = CacheStore(tmp_path)
    filled(store)
    liar = store.open(BlobKey(KEY.digest, 10, SCOPE))

    assert liar.index.count_present() == 0
    liar.close()
    assert {key.size for key in list(store.keys())} == {10, KEY.size}


def test_quarantine_takes_a_blob_out_of_sight_and_goes_first(tmp_path: Path) -> None:
    """A rejected blob is not found any more, and is the first that eviction names."""
    store = CacheStore(tmp_path)
    filled(store)
    store.quarantine(KEY)
    filled(store, BlobKey(Digest.of(b"other"), KEY.size, SCOPE))
    first = next(c for c in store.candidates(frozenset()) if c.rejected)

    assert store.stored(KEY) is None
    assert first.disk_bytes > 0
    store.evict(first)
    assert not any(c.rejected for c in store.candidates(frozenset()))


def test_stored_tells_what_is_there(tmp_path: Path) -> None:
    """Listing reads the index without opening the blob for writing; removing removes both files."""
    store = CacheStore(tmp_path)
    filled(store)
    stored = store.stored(KEY)

    assert stored is not None
    assert (stored.bytes_cached, stored.complete, stored.verified) == (KEY.size, True, False)
    assert store.used_bytes() >= KEY.size
    store.remove(KEY)
    assert (store.stored(KEY), list(store.keys())) == (None, [])
