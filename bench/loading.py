"""A model of 2 GB at 200 MB/s until it is ready: the publish and a load of all its tensors, against the slower of what no driver
can beat, the link (curl of all blobs to files) and the load itself (the same files on the local disk, not in the page cache);
and against what people do, skopeo copy to a directory and then the load. The loader is safetensors, mapped, tensor by tensor.

First tensor: from the publish of a cold model until 32 MiB in the middle of its last shard are there, while the rest is
being fetched. The node has mounted another model before, so its fetcher runs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bench import models
from bench.readers import Reader, Reading
from bench.results import Result, ratios
from bench.scale import by_scale
from bench.sequential import LINK_BYTES_PER_S
from bench.servers import Server, limited
from bench.workshop import forget, mount_something, plugin, published, run, workshop

_SHARDS = by_scale(small=2, full=4)
_TENSORS = by_scale(small=2, full=15)
_ROUNDS = by_scale(small=1, full=3)
_FIRST_ROUNDS = by_scale(small=1, full=5)
_READY_MARGIN_S = 1.0
_FIRST_MARGIN_S = 0.5


def measure() -> list[Result]:
    with workshop() as directory:
        model = models.write(directory / "source", shards=_SHARDS, tensors=_TENSORS)
        with limited(model.directory, LINK_BYTES_PER_S) as server, Reader() as reader:
            return [*_ready(directory, server, model, reader), *_first_tensor(directory, server, model, reader)]


def _ready(directory: Path, server: Server, model: models.Model, reader: Reader) -> list[Result]:
    link: list[float] = []
    local: list[float] = []
    pulled: list[tuple[float, Reading]] = []
    mounted: list[tuple[float, Reading]] = []
    for number in range(_ROUNDS):
        forget(model.paths)
        local.append(_whole(reader.read("safetensors", model.paths), model).seconds)
        copies = directory / "copies"
        copies.mkdir()
        link.append(run(*(server.curl(digest, copies / digest.hex) for digest in model.digests)).seconds)
        shutil.rmtree(copies)
        pulled.append(_pull_then_load(copies, server, model, reader))
        shutil.rmtree(copies)
        with plugin(directory, f"ready{number}") as node:
            mount_something(node)
            begun = time.monotonic()
            with published(node, "ready", server.reference, prefetch="full") as target:
                reading = reader.read("safetensors", model.below(target))
            mounted.append((begun, _whole(reading, model)))
    ours = _durations(mounted)
    skopeo = _durations(pulled)
    limit = [max(each) for each in zip(link, local, strict=True)]
    return [
        _limit("curl of all blobs to files", link),
        _limit("load from local files, page cache empty", local),
        Result(
            what="skopeo copy, then load",
            unit="seconds",
            samples=skopeo,
            chart="progress",
            label="skopeo copy, then load",
            peer=True,
            trace=_median_trace(pulled),
        ),
        Result(
            what="publish and load through the mount",
            unit="seconds",
            samples=ours,
            chart="progress",
            label="publish and load through the mount",
            trace=_median_trace(mounted),
        ),
        Result(what="  skopeo / mount", unit="ratio", samples=ratios(skopeo, ours)),
        Result(
            what=f"  ready, beyond {_READY_MARGIN_S:g} s / the slower of link and load",
            unit="ratio",
            samples=ratios([seconds - _READY_MARGIN_S for seconds in ours], limit),
            target=1.05,
        ),
    ]


def _limit(what: str, seconds: list[float]) -> Result:
    return Result(what=what, unit="seconds", samples=tuple(seconds), chart="progress", label=what, peer=True)


def _pull_then_load(copies: Path, server: Server, model: models.Model, reader: Reader) -> tuple[float, Reading]:
    begun = time.monotonic()
    run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{server.reference}", f"dir:{copies}"])
    return begun, _whole(reader.read("safetensors", [copies / digest.hex for digest in model.digests]), model)


def _first_tensor(directory: Path, server: Server, model: models.Model, reader: Reader) -> list[Result]:
    found: list[float] = []
    for number in range(_FIRST_ROUNDS):
        with plugin(directory, f"first{number}") as node:
            mount_something(node)
            begun = time.monotonic()
            with published(node, "first", server.reference, prefetch="full") as target:
                name = models.tensor_name(_SHARDS - 1, _TENSORS // 2)
                reading = reader.read("tensor", model.below(target)[-1:], name)
            assert reading.bytes == models.TENSOR_BYTES
            found.append(reading.ended - begun)
    transfer_s = models.TENSOR_BYTES / LINK_BYTES_PER_S
    return [
        Result(what="publish to first tensor (32 MiB)", unit="seconds", samples=tuple(found)),
        Result(
            what=f"  first tensor, beyond {_FIRST_MARGIN_S:g} s / its own transfer time",
            unit="ratio",
            samples=tuple((seconds - _FIRST_MARGIN_S) / transfer_s for seconds in found),
            target=1.0,
        ),
    ]


def _whole(reading: Reading, model: models.Model) -> Reading:
    assert reading.bytes == len(model.shards) * model.tensors * models.TENSOR_BYTES
    return reading


def _durations(runs: list[tuple[float, Reading]]) -> tuple[float, ...]:
    return tuple(reading.ended - begun for begun, reading in runs)


def _median_trace(runs: list[tuple[float, Reading]]) -> tuple[tuple[float, float], ...]:
    begun, reading = sorted(runs, key=lambda each: each[1].ended - each[0])[len(runs) // 2]
    return reading.trace(begun)
