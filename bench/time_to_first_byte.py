"""Publish to first byte of a small file must not depend on the model's size: 1 GB against 1 TB, both computed by the server."""

from __future__ import annotations

import os
import random
import statistics
import time
from pathlib import Path

from bench import synthetic
from bench.results import Result
from bench.workshop import memory_bytes, mounts, plugin, published, workshop
from weightless import units
from weightless.demo.registry import ModelRegistry

ROUNDS = 5
RANDOM_READS = 40


def measure() -> list[Result]:
    with workshop() as directory, ModelRegistry() as registry:
        small = synthetic.serve(registry, "bench/gigabyte", 10**9)
        large = synthetic.serve(registry, "bench/terabyte", 10**12)
        small_s: list[float] = []
        large_s: list[float] = []
        for number in range(ROUNDS):
            # Taken in turns, so that a slower moment of the machine touches both.
            small_s.append(_publish_and_read(directory, registry, small, f"small{number}"))
            large_s.append(_publish_and_read(directory, registry, large, f"large{number}"))
        memory, wrong = _read_at_random(directory, registry, large)
    ratio = statistics.median(large_s) / statistics.median(small_s)
    return [
        Result(
            what="publish to first byte, 1 GB",
            value=statistics.median(small_s),
            shown=units.duration(statistics.median(small_s)),
        ),
        Result(
            what="publish to first byte, 1 TB",
            value=statistics.median(large_s),
            shown=units.duration(statistics.median(large_s)),
            target=1.5,
            target_shown="1.5 s",
        ),
        Result(what="  1 TB / 1 GB", value=ratio, shown=f"{ratio:.2f}", target=1.3),
        Result(what=f"  wrong bytes in {RANDOM_READS} random reads of 1 TB", value=wrong, shown=f"{wrong}", target=0),
        Result(
            what="  worker's memory meanwhile (RSS)",
            value=memory,
            shown=units.size(memory),
            target=200e6,
            target_shown="200 MB",
        ),
    ]


def _publish_and_read(directory: Path, registry: ModelRegistry, model: synthetic.SyntheticModel, name: str) -> float:
    with plugin(directory, name) as node:
        begun = time.monotonic()
        with published(node, name, f"{registry.host}/{model.repository}:v1", prefetch="none") as target:
            content = (target / "config.json").read_bytes()
            seconds = time.monotonic() - begun
            if content != synthetic.CONFIG:
                raise AssertionError("config.json has other bytes than were served")
    return seconds


def _read_at_random(directory: Path, registry: ModelRegistry, model: synthetic.SyntheticModel) -> tuple[int, int]:
    """The worker's memory after reads all over the model, and how many of the reads were wrong."""
    choose = random.Random(7)
    wrong = 0
    reference = f"{registry.host}/{model.repository}:v1"
    with plugin(directory, "random") as node, published(node, "random", reference, prefetch="full") as target:
        for _ in range(RANDOM_READS):
            shard = choose.randrange(len(model.shards))
            source = model.shards[shard]
            offset = choose.randrange(source.size - 100_000)
            fd = os.open(target / model.name(shard), os.O_RDONLY)
            try:
                wrong += os.pread(fd, 100_000, offset) != source.read(offset, 100_000)
            finally:
                os.close(fd)
        memory = max(memory_bytes(mount.worker_pid, "VmRSS") for mount in mounts(node) if mount.worker_pid)
    return memory, wrong
