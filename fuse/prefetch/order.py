"""The order in which loaders read: what the background fetches first.

Configurations, tokenizers and indexes before all, then the beginning of every weight file (a header says where the tensors lie,
and a loader opens all shards before it reads one), then the weights shard by shard, then the rest. Of the weights those come
first that an index names, and those in the formats that loaders prefer: a repository often has the same model twice, or in ten
quantisations. Before all of that, where an earlier load is known: what it touched, in its order. Pure; a block is named once.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from operator import itemgetter
from typing import Final, NamedTuple

from fuse.artifact.profile import Run
from fuse.filesystem.table import Node, Table
from fuse.prefetch.hints import is_index

BLOCK_BYTES: Final = 1024 * 1024
SMALL_FILE_BYTES: Final = 1024 * 1024
UNIT_BLOCKS: Final = 4
"""What a learned order is cut into: what a chunk index proves at once, and what registries' caches and peers like."""
WEIGHTS: Final = (
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".h5",
    ".msgpack",
    ".npz",
    ".tflite",
)
PREFERRED: Final = (".safetensors", ".gguf")
"""What loaders take where a model is there in other formats as well; what they read of those is nothing."""
HEAD_BYTES: Final = {".gguf": 8 * 1024 * 1024}
"""What lies before the tensors, where that is more than a block: a vocabulary of 128,000 tokens has 8 MB. The other shards of a
split file have none, and the longer header of a safetensors file is fetched when it is opened (`fuse.prefetch.beginnings`)."""
_LATER_SHARD = re.compile(r"-(?!0*1-of-)\d{1,9}-of-\d{1,9}\.gguf$", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)")


class Range(NamedTuple):
    """Blocks of one blob."""

    blob: int
    first: int
    blocks: int


def ranges(table: Table, learned: Iterable[Run] = (), named: Collection[int] = ()) -> Iterator[Range]:
    """All blocks of all blobs of `table`, each once, in the order in which they are worth having.

    What an earlier load has touched comes first (`learned`, blobs by their numbers in the table), in its order. Of that, whatever
    lies outside the table's blobs is passed over. `named`: the files that an index names, by inode number.
    """
    done = _Done(table)
    files = [
        (ino, node) for ino, node in enumerate(table.nodes, 1) if node.kind == "f" and node.size and node.blob >= 0
    ]
    small = [node for _, node in files if node.size <= SMALL_FILE_BYTES or is_index(node)]
    large = sorted(
        (_rank(node, ino in named), natural(node.name), ino, node)
        for ino, node in files
        if node.size > SMALL_FILE_BYTES
    )
    # By place and not by name: a tar of ten thousand small files becomes a few ranges.
    small.sort(key=lambda node: (node.blob, node.offset))
    yield from done.new(_whole_units(table, learned))
    yield from done.new(_joined((node.blob, *file_blocks(node)) for node in small))
    yield from done.new((node.blob, *_head(node)) for rank, _, _, node in large if rank < _NO_WEIGHTS)
    yield from done.new((node.blob, *file_blocks(node)) for _, _, _, node in large)
    # Tar headers and padding, without which a blob is never complete and never verified.
    yield from done.new((index, 0, -(-blob.size // BLOCK_BYTES)) for index, blob in enumerate(table.blobs))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts `model-2` before `model-10`."""
    return tuple(
        (0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part)
        for part in _NUMBER.split(name)
        if part
    )


def is_large(node: Node) -> bool:
    return node.kind == "f" and node.blob >= 0 and node.size > SMALL_FILE_BYTES


def file_blocks(node: Node) -> tuple[int, int]:
    """First block and end of a file."""
    return node.offset // BLOCK_BYTES, (node.offset + node.size - 1) // BLOCK_BYTES + 1


_NO_WEIGHTS: Final = 4


def _rank(node: Node, named: bool) -> int:
    """The lower, the sooner: the formats that are preferred, and of each those files that an index names."""
    name = node.name.lower()
    if not name.endswith(WEIGHTS):
        return _NO_WEIGHTS
    return (0 if name.endswith(PREFERRED) else 2) + (0 if named else 1)


def _head(node: Node) -> tuple[int, int]:
    """Where a weight file says what is in it."""
    first, end = file_blocks(node)
    suffix = node.name[node.name.rfind(".") :].lower()
    head = 1 if _LATER_SHARD.search(node.name) else HEAD_BYTES.get(suffix, 1)
    return first, min(end, (node.offset + head - 1) // BLOCK_BYTES + 1)


def _whole_units(table: Table, learned: Iterable[Run]) -> Iterator[tuple[int, int, int]]:
    """Runs as (blob, first, end), widened to whole units: a request for less is not worth its round trip."""
    for blob, first, blocks in learned:
        if 0 <= blob < len(table.blobs) and first >= 0:
            start = first // UNIT_BLOCKS * UNIT_BLOCKS
            end = -(-(first + blocks) // UNIT_BLOCKS) * UNIT_BLOCKS
            end = min(end, -(-table.blobs[blob].size // BLOCK_BYTES))
            if blocks > 0 and start < end:
                yield blob, start, end


def _joined(spans: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Neighbours among (blob, first, end), which are sorted, as one."""
    current: tuple[int, int, int] | None = None
    for blob, first, end in spans:
        if current is not None and current[0] == blob and first <= current[2]:
            current = (blob, current[1], max(end, current[2]))
            continue
        if current is not None:
            yield current
        current = (blob, first, end)
    if current is not None:
        yield current


class _Done:
    """What has been named: a sorted list of disjoint spans (first, end) for each blob."""

    def __init__(self, table: Table) -> None:
        self._spans: list[list[tuple[int, int]]] = [[] for _ in table.blobs]

    def new(self, spans: Iterable[tuple[int, int, int]]) -> Iterator[Range]:
        """The parts of `spans` that were not named yet; from now on they are."""
        for blob, first, end in spans:
            named = self._spans[blob]
            # Those that it overlaps or touches: as they are disjoint, their ends are as sorted as their beginnings.
            low = bisect_left(named, first, key=itemgetter(1))
            high = bisect_right(named, end, key=itemgetter(0))
            at, within = first, named[low:high]
            for start, stop in within:
                if at < start:
                    yield Range(blob, at, start - at)
                at = max(at, stop)
            if at < end:
                yield Range(blob, at, end - at)
            around = [(first, end), *within[:1], *within[-1:]]
            named[low:high] = [(min(start for start, _ in around), max(stop for _, stop in around))]
