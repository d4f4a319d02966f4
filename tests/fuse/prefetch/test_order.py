"""The loader's order: configurations, headers, shards by number, the rest; every block once."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from fuse.filesystem.table import Blob, Node, Table
from fuse.prefetch.order import BLOCK_BYTES, Range, natural, ranges

MIB = BLOCK_BYTES


def table_of(files: list[tuple[str, int, int, int]], sizes: list[int]) -> Table:
    """Files as (name, blob, offset, size)."""
    root = Node(parent=1, name="", kind="d", mode=0o555, mtime_ns=0)
    nodes = tuple(
        Node(parent=1, name=name, kind="f", mode=0o444, mtime_ns=0, size=size, blob=blob, offset=offset)
        for name, blob, offset, size in files
    )
    blobs = tuple(Blob(f"sha256:{index:064}", size, "application/octet-stream") for index, size in enumerate(sizes))
    return Table(artifacts=(), blobs=blobs, nodes=(root, *nodes))


def test_small_files_then_headers_then_shards_in_number_order() -> None:
    """A model of three shards, a configuration and a large text."""
    table = table_of(
        [
            ("model-10.safetensors", 0, 0, 5 * MIB),
            ("model-2.safetensors", 1, 0, 5 * MIB),
            ("NOTES.txt", 2, 0, 3 * MIB),
            ("config.json", 3, 0, 500),
        ],
        [5 * MIB, 5 * MIB, 3 * MIB, 500],
    )

    assert list(ranges(table)) == [
        Range(3, 0, 1),
        Range(1, 0, 1),
        Range(0, 0, 1),
        Range(1, 1, 4),
        Range(0, 1, 4),
        Range(2, 0, 3),
    ]


def test_tar_of_many_small_files_is_few_ranges() -> None:
    """Ten thousand neighbours are one request, not ten thousand."""
    files = [(f"{number}.json", 0, number * 10_240 + 512, 9_000) for number in range(10_000)]
    table = table_of(files, [10_000 * 10_240 + 1024])

    assert len(list(ranges(table))) <= 2


def test_bytes_of_no_file_are_fetched_last() -> None:
    """Headers and padding belong to the blob's digest."""
    table = table_of([("a.bin", 0, 4 * MIB, 2 * MIB)], [10 * MIB])

    assert list(ranges(table)) == [Range(0, 4, 1), Range(0, 5, 1), Range(0, 0, 4), Range(0, 6, 4)]


def test_names_with_odd_digits_can_be_sorted() -> None:
    """Digits of other scripts and superscripts are letters here."""
    names = ["a²", "a2", "a٣", "a10", "", "7", "b"]

    assert min(names, key=natural) == ""
    assert sorted(["m-10", "m-9"], key=natural) == ["m-9", "m-10"]


def test_what_a_load_touched_comes_first_in_its_order() -> None:
    """In units of 4 MiB; then the rest in the default order."""
    table = table_of(
        [("model-1.safetensors", 0, 0, 16 * MIB), ("model-2.safetensors", 1, 0, 9 * MIB), ("config.json", 2, 0, 500)],
        [16 * MIB, 9 * MIB, 500],
    )

    assert list(ranges(table, [(1, 8, 1), (0, 9, 2), (1, 2, 3)])) == [
        Range(1, 8, 1),
        Range(0, 8, 4),
        Range(1, 0, 8),
        Range(2, 0, 1),
        Range(0, 0, 1),
        Range(0, 1, 7),
        Range(0, 12, 4),
    ]


def test_a_long_profile_takes_no_time() -> None:
    """Every second unit of a large blob, from behind: not one step for each pair of them."""
    count = 4096
    table = table_of([("model.bin", 0, 0, count * 8 * MIB)], [count * 8 * MIB])
    began = time.process_time()
    found = list(ranges(table, [(0, 8 * number, 1) for number in reversed(range(count))]))

    assert Range(0, 8 * count - 8, 4) == found[0]
    assert time.process_time() - began < 0.5


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["config.json", "a.safetensors", "b-2.gguf", "notes"]),
            st.integers(0, 2),
            st.integers(0, 12 * MIB),
            st.integers(0, 8 * MIB),
        ),
        max_size=12,
    ),
    st.lists(
        st.tuples(st.integers(-1, 4), st.integers(-3, 30), st.integers(-3, 30) | st.sampled_from([10**18, -(10**18)])),
        max_size=12,
    ),
)
def test_every_block_of_every_blob_is_named_exactly_once(
    files: list[tuple[str, int, int, int]], learned: list[tuple[int, int, int]]
) -> None:
    """Whatever the files, and however they overlap; and whatever somebody says of an earlier load."""
    size = 20 * MIB + 1
    table = table_of([(name, blob, offset, length) for name, blob, offset, length in files], [size, size, size])
    named = [
        (found.blob, block)
        for found in ranges(table, learned)
        for block in range(found.first, found.first + found.blocks)
    ]

    assert sorted(named) == [(blob, block) for blob in range(3) for block in range(21)]


def test_shards_that_an_index_names_come_before_the_same_model_in_other_forms() -> None:
    """Safetensors before formats that loaders pass over, what an index names before what it does not, then by number."""
    names = [
        "consolidated.safetensors",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "model-00002-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
        "training.pt",
        "traces.dat",
    ]
    table = table_of([(name, blob, 0, 2 * MIB) for blob, name in enumerate(names)], [2 * MIB] * len(names))
    expected = [4, 3, 0, 1, 2, 5]  # blobs

    found = list(ranges(table, (), {2 + 3, 2 + 4, 2 + 1, 2 + 2}))
    assert [Range(blob, 0, 1) for blob in expected] + [Range(blob, 1, 1) for blob in expected] == found[:-1]
    assert Range(6, 0, 2) == found[-1]


def test_an_index_comes_with_the_small_files_though_it_is_large() -> None:
    """One of a mixture of experts has many megabytes; what calls itself so and is huge waits."""
    table = table_of(
        [
            ("model.safetensors", 0, 0, 4 * MIB),
            ("model.safetensors.index.json", 1, 0, 9 * MIB),
            ("huge.index.json", 2, 0, 17 * MIB),
        ],
        [4 * MIB, 9 * MIB, 17 * MIB],
    )

    assert [Range(1, 0, 9), Range(0, 0, 1), Range(0, 1, 3), Range(2, 0, 17)] == list(ranges(table))


def test_the_head_of_a_gguf_holds_its_vocabulary() -> None:
    """Only that of a single file or of the first shard of a split one."""
    names = ["one.gguf", "two-00001-of-00003.gguf", "two-00002-of-00003.gguf", "two-00011-of-00013.gguf"]
    table = table_of([(name, blob, 0, 20 * MIB) for blob, name in enumerate(names)], [20 * MIB] * len(names))

    assert [Range(0, 0, 8), Range(1, 0, 8), Range(2, 0, 1), Range(3, 0, 1)] == list(ranges(table))[:4]
