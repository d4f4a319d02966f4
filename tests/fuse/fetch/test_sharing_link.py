"""One link, a reader and the background, in counts that do not depend on the clock: what is sent, what of it twice, how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.fetch.courtesy import LEAVES
from fuse.fetch.queue import LEAST_BACKGROUND
from fuse.fetch.runs import Priority
from tests.support.fetcher import wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, MIB, Rig, expected
from tests.support.registry import FaultyRegistry

LINK_BYTES_PER_S = 40_000_000.0
"""A block in 26 ms: far slower than this process, so that the link is what is shared."""
READ = range(30, 38)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "c").mkdir()
    with FaultyRegistry(rate_bytes_per_s=LINK_BYTES_PER_S) as registry:
        registry.add_blob(CONTENT)
        rig = Rig(tmp_path / "c", registry)
        yield rig
        rig.close()


def test_what_is_left_for_a_reader_costs_little(rig: Rig) -> None:
    """What the background leaves comes twice in small parts only and is never written twice; no request is made for nothing."""
    port, seen = rig.mount()
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    wait_until(lambda: rig.registry.statistics().bytes_sent > 2 * MIB, "the background to be under way")
    for block in READ:
        rig.want(port, block)
        seen.wait_ready(block)
        assert seen.block(block) == expected(block)
    wait_until(lambda: rig.engine.progress(port.mount, 1).bytes_cached == len(CONTENT), "all")

    statistics = rig.registry.statistics()
    assert rig.engine.progress(port.mount, 1).bytes_fetched == len(CONTENT)
    assert statistics.bytes_sent - len(CONTENT) < LEAVES * MIB
    assert statistics.requests <= len(READ) + 2 * (BLOCKS // LEAST_BACKGROUND + LEAVES)
