"""Streams: forward reading is seen whoever reads, random reading is not, and what is fetched ahead stays in proportion."""

from __future__ import annotations

import random

import pytest

from fuse.prefetch.streams import FIRST_WINDOW_BYTES, MAX_STREAMS, MIB, BothWays, Streams

FILE = 7


def read(streams: Streams, offsets: list[int], size: int = MIB) -> list[tuple[int, int]]:
    return [found for offset in offsets for found in streams.observe(FILE, offset, size)]


def test_sequential_reads_are_ahead_without_gap_or_repetition() -> None:
    """What is asked ahead of a long sequential read is one contiguous range."""
    asked = read(Streams(), [number * MIB for number in range(64)])

    assert asked
    assert asked[0][0] == FIRST_WINDOW_BYTES
    assert [start for start, _ in asked[1:]] == [start + length for start, length in asked[:-1]]


def test_stream_is_always_ahead_of_its_reader() -> None:
    """Once it is a stream, the next read has been asked for."""
    streams, ahead = Streams(), 0
    for number in range(500):
        if number >= FIRST_WINDOW_BYTES // MIB:
            assert ahead > number * MIB
        for start, length in streams.observe(FILE, number * MIB, MIB):
            ahead = start + length


def test_window_is_never_more_than_was_read() -> None:
    """A stream that ends after n bytes has cost at most n bytes more."""
    streams, ahead = Streams(), 0
    for number in range(300):
        for start, length in streams.observe(FILE, number * MIB, MIB):
            ahead = start + length
        read_until = (number + 1) * MIB

        assert ahead <= 2 * read_until
        assert ahead <= read_until + streams.max_window_bytes


def test_requests_grow_large() -> None:
    """A long stream asks in few, large ranges."""
    asked = read(Streams(), [number * MIB for number in range(1024)])

    assert len(asked) < 30
    assert max(length for _, length in asked) >= 64 * MIB


def test_random_reads_fetch_little_ahead() -> None:
    """Reads of 128 KiB at random places of a large file make no stream."""
    chance = random.Random(4)
    asked = read(Streams(), [chance.randrange(0, 64 * 1024 * MIB, 4096) for _ in range(3000)], 128 * 1024)

    assert asked == []


def test_random_page_faults_fetch_little_ahead() -> None:
    """Single READs of the kernel's read-ahead at random places of a 100 GB file: a tenth more than they read at most."""
    chance = random.Random(5)
    asked = read(Streams(), [chance.randrange(0, 100_000) * MIB for _ in range(1000)])

    assert sum(length for _, length in asked) < 100 * MIB


def test_many_streams_of_one_file_are_seen_at_once() -> None:
    """Sixteen readers far apart, in turns: each has its own window."""
    starts = [reader * 1000 * MIB for reader in range(16)]
    asked = read(Streams(), [start + step * MIB for step in range(8) for start in starts])

    for start in starts:
        assert any(start < begin < start + 100 * MIB for begin, _ in asked)


def test_ranks_that_share_a_front_are_one_stream() -> None:
    """Four readers that take every fourth megabyte, out of order, advance one front."""
    offsets = [
        number * MIB for group in range(16) for number in (4 * group + 2, 4 * group, 4 * group + 3, 4 * group + 1)
    ]
    streams = Streams()
    asked = read(streams, offsets)

    assert len(streams) == 1
    assert sum(length for _, length in asked) >= 32 * MIB


def test_files_do_not_share_streams() -> None:
    """The same offsets of different files are different streams."""
    streams = Streams()
    for ino in range(100):
        assert streams.observe(ino, ino * MIB, MIB) == ()


@pytest.mark.parametrize("window", [0, 2 * MIB])
def test_window_limit_is_kept(window: int) -> None:
    """A model whose laziness matters bounds what is ahead."""
    streams, ahead = Streams(window), 0
    for number in range(100):
        for start, length in streams.observe(FILE, number * MIB, MIB):
            ahead = start + length
        assert ahead <= (number + 1) * MIB + window


def test_memory_is_bounded() -> None:
    """However many places are read, few streams are remembered."""
    streams = Streams()
    for number in range(10_000):
        streams.observe(number, 0, 4096)

    assert len(streams) == MAX_STREAMS


def test_window_shrinks_when_little_of_what_is_passed_is_read() -> None:
    """A stream that goes over to one megabyte in eight soon asks for nothing; one that comes back to reading all does again."""
    streams, front = Streams(), 64 * MIB
    asked = read(streams, list(range(0, front, MIB)))
    ahead = max(start + length for start, length in asked)
    sparse = [front + step * 8 * MIB for step in range(100)]
    wasted = read(streams, sparse)

    assert sum(length for start, length in wasted if start + length > ahead) <= 2 * front
    assert read(streams, [sparse[-1] + step * 8 * MIB for step in range(1, 100)]) == []
    assert read(streams, [sparse[-1] + 792 * MIB + step * MIB for step in range(1, 10)]) != []


def test_what_was_passed_over_and_read_late_costs_no_window() -> None:
    """Two processes that share a file handle, one of them half a group behind: as far ahead as one that reads in order."""
    in_order, shared = Streams(), Streams()
    read(in_order, [number * MIB for number in range(256)])
    read(shared, [number * MIB for group in range(0, 256, 4) for number in (group + 2, group + 3, group, group + 1)])
    (one,), (other,) = in_order._streams.values(), shared._streams.values()

    assert 256 * MIB == one.run
    assert 250 * MIB <= other.run <= 256 * MIB
    assert 0 == other.passed


def read_backward(streams: BothWays, start: int, end: int, size: int = 516 * 1024) -> list[tuple[int, int]]:
    """As memcpy(3) may read what is mapped: the kernel reads around each page that is missing."""
    found: list[tuple[int, int]] = []
    while end > start:
        offset = max(start, end - size)
        found += streams.observe(FILE, offset, end - offset)
        end = offset
    return found


def test_backward_reads_are_ahead_too() -> None:
    """From the end of a tensor down, without gap or repetition; nothing is asked for above it, nor below zero."""
    asked = read_backward(BothWays(), 0, 40 * MIB)

    assert asked[0][0] + asked[0][1] >= 38 * MIB
    assert [start for start, _ in asked[:-1]] == [start + length for start, length in asked[1:]]
    assert 0 == asked[-1][0]


def test_window_is_never_more_than_was_read_backward() -> None:
    """What lies below a tensor costs no more than the tensor."""
    asked = read_backward(BothWays(), 100 * MIB, 116 * MIB)

    assert min(start for start, _ in asked) >= 84 * MIB
    assert max(start + length for start, length in asked) <= 116 * MIB


def test_each_direction_is_blind_to_the_other() -> None:
    """A forward reader asks for nothing below its beginning, and a random one for next to nothing."""
    forward, chance, streams = BothWays(), random.Random(6), BothWays()
    asked = [found for step in range(64) for found in forward.observe(FILE, (1000 + step) * MIB, MIB)]
    by_chance = [found for _ in range(1000) for found in streams.observe(FILE, chance.randrange(0, 100_000) * MIB, MIB)]

    assert min(start for start, _ in asked) >= 1000 * MIB
    assert sum(length for _, length in by_chance) < 20 * MIB
