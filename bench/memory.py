"""What mounts cost while nobody reads: memory that is theirs alone (RssAnon), and processor time."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench import synthetic
from bench.results import Result
from bench.scale import by_scale
from bench.workshop import cpu_seconds, memory_bytes, mounts, pids, plugin, published, workshop
from weightless.demo.registry import ModelRegistry

MOUNTS = 3
IDLE_S = by_scale(small=2.0, full=10.0)


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = stack.enter_context(workshop())
        registry = stack.enter_context(ModelRegistry())
        node = stack.enter_context(plugin(directory, "memory"))
        for number in range(MOUNTS):
            model = synthetic.serve(registry, f"bench/idle{number}", 10**9)
            reference = f"{registry.host}/{model.repository}:v1"
            target = stack.enter_context(published(node, f"idle{number}", reference, prefetch="none"))
            (target / "config.json").read_bytes()
        workers = [mount.worker_pid for mount in mounts(node) if mount.worker_pid]
        shared = pids(node) - set(workers)
        before = {pid: cpu_seconds(pid) for pid in (*workers, *shared)}
        time.sleep(IDLE_S)
        busy = {pid: (cpu_seconds(pid) - before[pid]) / IDLE_S for pid in before}
        worker_bytes = tuple(memory_bytes(pid) for pid in workers)
        shared_bytes = sum(memory_bytes(pid) for pid in shared)
    worker_busy = tuple(busy[pid] for pid in workers)
    shared_busy = sum(busy[pid] for pid in shared)
    return [
        Result(
            what="idle worker, RssAnon",
            unit="bytes",
            samples=worker_bytes,
            target=50e6,
        ),
        Result(
            what="  its processor time",
            unit="share",
            samples=worker_busy,
            target=0.001,
        ),
        Result(
            what="plugin, fetcher and keeper, RssAnon",
            unit="bytes",
            samples=(shared_bytes,),
            target=200e6,
        ),
        Result(what="  their processor time", unit="share", samples=(shared_busy,), target=0.01),
    ]
