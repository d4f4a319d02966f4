"""Reads of 128 KiB at random places of a cold mount, one thread, nothing prefetched, no block touched twice; against ranged
GETs of the blocks that each read touches (blocks are 1 MiB), over one connection to the same server, in turns.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from bench import models
from bench.readers import Reader, Reading
from bench.results import Result, quantile, ratios
from bench.scale import by_scale
from bench.sequential import LINK_BYTES_PER_S
from bench.servers import Server, blob_path, limited, nginx
from bench.workshop import plugin, published, workshop
from fuse.cache.index import BLOCK_BYTES
from weightless import units

_TENSORS = by_scale(small=4, full=30)
_READS = by_scale(small=50, full=400)
_ROUNDS = by_scale(small=2, full=5)
_READ_BYTES = 128 * 1024
_PAGE_BYTES = 4096


def measure() -> list[Result]:
    with workshop() as directory, Reader() as reader:
        model = models.write(directory / "source", tensors=_TENSORS)
        with limited(model.directory, LINK_BYTES_PER_S) as server:
            results = _compare(directory, server, model, reader, f"at {units.rate(LINK_BYTES_PER_S)}")
        with nginx(directory / "nginx", model.packed) as server:
            return [*results, *_compare(directory, server, model, reader, "unlimited")]


def _compare(directory: Path, server: Server, model: models.Model, reader: Reader, words: str) -> list[Result]:
    (digest,) = model.digests
    choose = random.Random(7)
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    for number in range(_ROUNDS):
        offsets = _offsets(choose, model.size)
        ranges = [_touched(offset, model.size) for offset in offsets]
        theirs.append(_each(reader.read("ranges", [Path(blob_path(digest))], server.host, ranges)))
        name = f"{server.host.rpartition(':')[2]}-{number}"
        with (
            plugin(directory, name, server.plugin_arguments) as node,
            published(node, name, server.reference, prefetch="none") as target,
        ):
            ours.append(_each(reader.read("random", model.below(target), offsets, _READ_BYTES)))
    median, median_get, worst, worst_get = (
        [quantile(each, share) for each in times] for share in (0.5, 0.99) for times in (ours, theirs)
    )
    return [
        Result(what=f"128 KiB at random, {words}: median", unit="seconds", samples=tuple(median)),
        Result(what="  a GET of its blocks", unit="seconds", samples=tuple(median_get)),
        Result(what=f"  read / GET, {words}, median", unit="ratio", samples=ratios(median, median_get), target=1.5),
        Result(what="  99th percentile", unit="seconds", samples=tuple(worst)),
        Result(what="  a GET of its blocks, 99th percentile", unit="seconds", samples=tuple(worst_get)),
        Result(
            what=f"  read / GET, {words}, 99th percentile", unit="ratio", samples=ratios(worst, worst_get), target=2.0
        ),
    ]


def _offsets(choose: random.Random, size: int) -> list[int]:
    """In every second block at most, so that what crosses into the next one touches nothing that was fetched."""
    slots = choose.sample(range((size - _READ_BYTES) // (2 * BLOCK_BYTES)), _READS)
    return [slot * 2 * BLOCK_BYTES + choose.randrange(0, BLOCK_BYTES, _PAGE_BYTES) for slot in slots]


def _touched(offset: int, size: int) -> tuple[int, int]:
    begin = offset // BLOCK_BYTES * BLOCK_BYTES
    end = min(size, -(-(offset + _READ_BYTES) // BLOCK_BYTES) * BLOCK_BYTES)
    return begin, end - begin


def _each(reading: Reading) -> list[float]:
    moments = [reading.began, *(moment for moment, _ in reading.steps)]
    return [later - earlier for earlier, later in itertools.pairwise(moments)]
