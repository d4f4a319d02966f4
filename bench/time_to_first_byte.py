"""Publish must not depend on the model's size. To the first byte of a small file: 1 GB against 1 TB, each by a plugin that
has just started. The publish alone: 1 TB in 500 files, with a fetcher that runs, of a manifest that it has never seen and of one
that it knows. All bytes are computed by the server.
"""

from __future__ import annotations

import http.client
import os
import random
import time
from pathlib import Path

from bench import synthetic
from bench.results import Result, ratios
from bench.scale import by_scale
from bench.workshop import memory_bytes, mount_something, mounts, plugin, published, workshop
from weightless.demo.plugin import NodePlugin
from weightless.demo.registry import ModelRegistry

ROUNDS = by_scale(small=2, full=5)
RANDOM_READS = 40
FILES = 500


def measure() -> list[Result]:
    with workshop() as directory, ModelRegistry() as registry:
        small = synthetic.serve(registry, "bench/gigabyte", 10**9)
        large = synthetic.serve(registry, "bench/terabyte", 10**12)
        many = synthetic.serve(registry, "bench/files", 10**12, shards=FILES)
        small_s: list[float] = []
        large_s: list[float] = []
        unknown_s: list[float] = []
        known_s: list[float] = []
        trip_s: list[float] = []
        for number in range(ROUNDS):
            # Taken in turns, so that a slower moment of the machine touches both.
            small_s.append(_publish_and_read(directory, registry, small, f"small{number}"))
            large_s.append(_publish_and_read(directory, registry, large, f"large{number}"))
            trip_s.append(_round_trip(registry))
            with plugin(directory, f"files{number}") as node:
                mount_something(node)
                unknown_s.append(_publish(node, registry, many, "unknown"))
                known_s.append(_publish(node, registry, many, "known"))
        memory, wrong = _read_at_random(directory, registry, large)
    return [
        Result(what="publish to first byte, 1 GB", unit="seconds", samples=tuple(small_s)),
        Result(what="publish to first byte, 1 TB", unit="seconds", samples=tuple(large_s), target=1.5),
        Result(what="  1 TB / 1 GB", unit="ratio", samples=ratios(large_s, small_s), target=1.3),
        Result(what=f"  wrong bytes in {RANDOM_READS} random reads of 1 TB", unit="count", samples=(wrong,), target=0),
        Result(what="  worker's memory meanwhile (RSS)", unit="bytes", samples=(memory,), target=200e6),
        Result(
            what=f"publish, 1 TB in {FILES} files, manifest unknown, less two round trips",
            unit="seconds",
            samples=tuple(seconds - 2 * trip for seconds, trip in zip(unknown_s, trip_s, strict=True)),
            target=1.0,
        ),
        Result(
            what=f"publish, 1 TB in {FILES} files, manifest known",
            unit="seconds",
            samples=tuple(known_s),
            target=0.3,
        ),
    ]


def _publish(node: NodePlugin, registry: ModelRegistry, model: synthetic.SyntheticModel, name: str) -> float:
    begun = time.monotonic()
    with published(node, name, f"{registry.host}/{model.repository}:v1", prefetch="none"):
        return time.monotonic() - begun


def _round_trip(registry: ModelRegistry) -> float:
    connection = http.client.HTTPConnection(registry.host)
    try:
        connection.connect()
        begun = time.monotonic()
        connection.request("GET", "/v2/")
        connection.getresponse().read()
        return time.monotonic() - begun
    finally:
        connection.close()


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
