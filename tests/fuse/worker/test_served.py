"""Pages of the cache's file are given up some way behind what is served."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.cache.blob import CachedBlob
from fuse.worker.served import Served
from fuse.worker.session_client import FetchSession
from tests.support.fetchsession import BLOCK, Blob
from tests.support.pages import pages

CONTENT = random.Random(5).randbytes(12 * BLOCK)
PAGE = os.sysconf("SC_PAGE_SIZE")
LAG = 4 * BLOCK


class Bench:
    def __init__(self, directory: Path) -> None:
        self.blob = Blob(directory, CONTENT)
        for number in range(12):
            self.blob.publish(number)  # as the cache is written: block by block, in pages that can be dropped as such
        self.fd = os.open(self.blob._data, os.O_RDONLY)
        os.fsync(self.fd)
        self.session = FetchSession(
            1, background=lambda _: iter(()), on_condition=lambda *_: None, on_quarantine=lambda _: None
        )
        self.state = self.session.blobs[0]
        self.state.replace(CachedBlob(os.dup(self.fd), os.open(self.blob._index, os.O_RDONLY)))
        self.served = Served(LAG)

    def cached_bytes(self) -> int:
        return pages(self.fd).cached * PAGE

    def close(self) -> None:
        self.session.close()
        os.close(self.fd)
        self.blob.index.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("piece", [BLOCK, 4096, 3 * BLOCK // 2])
def test_what_was_served_is_given_up_behind_the_reader(bench: Bench, piece: int) -> None:
    """Whatever the size of the reads: at the end little more than the lag is left in memory."""
    assert bench.cached_bytes() == len(CONTENT)
    for position in range(0, len(CONTENT), piece):
        bench.served.note(bench.state, position, min(piece, len(CONTENT) - position))

    assert LAG / 2 <= bench.cached_bytes() <= LAG + 2 * piece


def test_what_was_not_served_stays(bench: Bench) -> None:
    """Two blocks that are read again and again cost the others nothing."""
    for _ in range(50):
        bench.served.note(bench.state, 3 * BLOCK, BLOCK)
        bench.served.note(bench.state, 7 * BLOCK, BLOCK)

    assert bench.cached_bytes() == len(CONTENT) - 2 * BLOCK


def test_files_that_were_replaced_meanwhile_are_passed_over(bench: Bench) -> None:
    """A blob that was set aside has no files to give up."""
    bench.served.note(bench.state, 0, BLOCK)
    bench.state.replace(None)
    bench.served.note(bench.state, BLOCK, 8 * BLOCK)
    bench.served.note(bench.state, 9 * BLOCK, BLOCK)
