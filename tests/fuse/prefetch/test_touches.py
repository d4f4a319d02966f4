"""First touches: each block once, in the order of reading, in few runs, and in bounded memory."""

from __future__ import annotations

import random
import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact.profile import BLOCK_BYTES, MOST_RUNS
from fuse.filesystem.table import Blob, Table
from fuse.prefetch.touches import LONGEST_RUN, Touches


def touches(*blocks: int) -> Touches:
    """Of blobs with so many blocks."""
    blobs = tuple(Blob(f"sha256:{number:064}", count * BLOCK_BYTES, "") for number, count in enumerate(blocks))
    return Touches(Table(artifacts=(), blobs=blobs, nodes=()))


def test_reading_straight_on_is_one_run() -> None:
    """However long, and though each READ touches two blocks."""
    seen = touches(1000)
    for block in range(999):
        seen.note(0, block, block + 1)

    assert ((0, 0, 1000),) == seen.runs()
    assert 1000 == seen.blocks


def test_what_is_read_again_changes_nothing() -> None:
    """The first touch counts."""
    seen = touches(10)
    for block in (7, 3, 7, 8, 3, 0):
        seen.note(0, block, block)

    assert ((0, 7, 2), (0, 3, 1), (0, 0, 1)) == seen.runs()
    assert 4 == seen.blocks


def test_shards_that_are_read_side_by_side_stay_so() -> None:
    """In pieces of what one request brings, not shard by shard, nor block by block."""
    seen = touches(2 * LONGEST_RUN, 2 * LONGEST_RUN)
    for block in range(2 * LONGEST_RUN):
        seen.note(0, block, block)
        seen.note(1, block, block)

    assert ((0, 0, 64), (1, 0, 64), (0, 64, 64), (1, 64, 64)) == seen.runs()


def test_reads_that_overtake_each_other_are_joined() -> None:
    """Threads take READs off the device in any order."""
    seen = touches(8)
    for block in (0, 2, 1, 3, 5, 4, 6, 7):
        seen.note(0, block, block)

    assert ((0, 0, 8),) == seen.runs()


def test_a_load_goes_on_after_it_was_looked_at() -> None:
    """What was joined for an answer is gone on with."""
    seen = touches(8)
    for block in (0, 2, 1):
        seen.note(0, block, block)
    assert ((0, 0, 3),) == seen.runs()
    seen.note(0, 3, 4)

    assert ((0, 0, 5),) == seen.runs()


def test_a_load_without_any_order_takes_bounded_memory() -> None:
    """The beginning is kept, as far as it goes; everything is counted."""
    blocks = list(range(0, 6 * MOST_RUNS, 3))
    random.Random(1).shuffle(blocks)
    seen = touches(6 * MOST_RUNS)
    for block in blocks:
        seen.note(0, block, block)

    assert tuple((0, block, 1) for block in blocks[:MOST_RUNS]) == seen.runs()
    assert len(blocks) == seen.blocks
    assert 2 * MOST_RUNS == len(seen._runs)


def test_what_takes_no_time_at_first_takes_none_later() -> None:
    """Readers wait for each other while something new is noted."""
    blocks = list(range(0, 60 * MOST_RUNS, 3))
    random.Random(1).shuffle(blocks)
    seen = touches(60 * MOST_RUNS)
    began = time.process_time()
    for block in blocks:
        seen.note(0, block, block)

    assert len(blocks) == seen.blocks
    assert time.process_time() - began < 2


def test_a_long_load_leaves_room_for_what_is_read_after_it() -> None:
    """Half a terabyte straight on is more pieces than are kept, and one run."""
    count = (2 * MOST_RUNS + 1) * LONGEST_RUN
    seen = touches(count, 1)
    seen.note(0, 0, count - 1)
    seen.note(1, 0, 0)

    assert ((0, 0, count), (1, 0, 1)) == seen.runs()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19), st.integers(0, 3)), max_size=60))
def test_each_block_is_named_once_in_the_order_of_run_beginnings(reads: list[tuple[int, int, int]]) -> None:
    """Whatever is read."""
    seen = touches(20, 20, 20)
    order: list[tuple[int, int]] = []
    for blob, first, more in reads:
        last = min(19, first + more)
        seen.note(blob, first, last)
        order += [(blob, block) for block in range(first, last + 1) if (blob, block) not in order]
    runs = seen.runs()
    named = [(blob, block) for blob, first, blocks in runs for block in range(first, first + blocks)]

    assert sorted(order) == sorted(named)
    assert len(order) == seen.blocks
    beginnings = [order.index((blob, first)) for blob, first, _ in runs]
    assert beginnings == sorted(beginnings)


def test_threads_touch_together() -> None:
    """Each block is counted once."""
    seen = touches(4000)

    def read() -> None:
        for block in range(4000):
            seen.note(0, block, block)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 4000 == seen.blocks == sum(blocks for _, _, blocks in seen.runs())
