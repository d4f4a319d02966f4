"""Loaders on a cold mount, from nginx over unlimited loopback: a sequential dd, safetensors mapped (the default) and read whole,
16 threads at 16 places as Run:ai's streamer does it, and a mapped file of which every page is touched in order, as llama.cpp
reads a GGUF. Each from its first read until it has everything; publishing is not in it.
"""

from __future__ import annotations

from pathlib import Path

from bench import models
from bench.readers import Reader
from bench.results import Result, ratios
from bench.scale import by_scale
from bench.servers import Server, nginx
from bench.workshop import dd, plugin, published, workshop

_TENSORS = by_scale(small=3, full=30)
_ROUNDS = by_scale(small=1, full=3)
_LOADERS = {
    "dd": "sequential (dd)",
    "safetensors": "safetensors, mapped",
    "eager": "safetensors, read whole",
    "streamer": "16 threads, 2 MiB each",
    "gguf": "mapped, page by page",
}


def measure() -> list[Result]:
    rates: dict[str, list[float]] = {how: [] for how in _LOADERS}
    with workshop() as directory:
        model = models.write(directory / "source", tensors=_TENSORS)
        with nginx(directory / "nginx", model.packed) as server:
            for number in range(_ROUNDS):
                for how, found in rates.items():
                    found.append(model.size / _load(directory, f"{how}{number}", server, model, how))
    results = [
        Result(
            what=f"cold: {words}",
            unit="bytes/s",
            samples=tuple(rates[how]),
            chart="loaders",
            label=words,
            peer=how == "dd",
        )
        for how, words in _LOADERS.items()
    ]
    against = Result(
        what="  safetensors, mapped / sequential",
        unit="ratio",
        samples=ratios(rates["safetensors"], rates["dd"]),
        target=0.8,
        bound="at least",
    )
    return [*results[:2], against, *results[2:]]


def _load(directory: Path, name: str, server: Server, model: models.Model, how: str) -> float:
    with (
        Reader() as reader,
        plugin(directory, name, server.plugin_arguments) as node,
        published(node, name, server.reference, prefetch="full") as target,
    ):
        paths = model.below(target)
        return dd(*paths).seconds if how == "dd" else reader.read(how, paths).seconds
