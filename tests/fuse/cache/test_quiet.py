"""Hashing leaves the page cache as it found it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse.cache.quiet import read_quietly
from tests.support.pages import pages

CONTENT = os.urandom(1 << 20)


@pytest.mark.parametrize("was_cached", [True, False])
def test_what_is_hashed_is_cached_afterwards_if_it_was_before(tmp_path: Path, was_cached: bool) -> None:
    """Blocks that a reader is about to want stay; blocks that only the hash wanted do not take memory from others."""
    (tmp_path / "data").write_bytes(CONTENT)
    fd = os.open(tmp_path / "data", os.O_RDWR)
    os.fsync(fd)
    if not was_cached:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = pages(fd).cached
    buffer = memoryview(bytearray(len(CONTENT)))

    assert (before > 0) is was_cached
    assert read_quietly(fd, buffer, 0)
    assert buffer == CONTENT
    assert pages(fd).cached == before
    assert not read_quietly(fd, buffer, 1)
    os.close(fd)


def test_hashing_needs_no_flag_that_the_c_library_may_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """musl has had preadv2 since 1.2.5 only; without it Python has no RWF_NOWAIT."""
    monkeypatch.delattr(os, "RWF_NOWAIT")
    (tmp_path / "data").write_bytes(CONTENT)
    buffer = memoryview(bytearray(len(CONTENT)))
    with (tmp_path / "data").open("rb") as file:
        assert read_quietly(file.fileno(), buffer, 0)
    assert buffer == CONTENT
