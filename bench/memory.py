"""What mounts cost while nobody reads: memory that is theirs alone (RssAnon), and processor time."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench import synthetic
from bench.results import Result
from bench.workshop import cpu_seconds, memory_bytes, mounts, plugin, published, workshop
from weightless import units
from weightless.demo.registry import ModelRegistry

MOUNTS = 3
IDLE_S = 10.0


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
        held = mounts(node)
        workers = [mount.worker_pid for mount in held if mount.worker_pid]
        shared = {node.pid, *(pid for mount in held for pid in (mount.keeper_pid, mount.fetcher_pid) if pid)}
        before = {pid: cpu_seconds(pid) for pid in (*workers, *shared)}
        time.sleep(IDLE_S)
        busy = {pid: (cpu_seconds(pid) - before[pid]) / IDLE_S for pid in before}
        worker_bytes = max(memory_bytes(pid) for pid in workers)
        shared_bytes = sum(memory_bytes(pid) for pid in shared)
    worker_busy = max(busy[pid] for pid in workers)
    shared_busy = sum(busy[pid] for pid in shared)
    return [
        Result(
            what="idle worker, RssAnon",
            value=worker_bytes,
            shown=units.size(worker_bytes),
            target=50e6,
            target_shown="50 MB",
        ),
        Result(
            what="  its processor time",
            value=worker_busy,
            shown=f"{worker_busy:.2%}",
            target=0.001,
            target_shown="0.1%",
        ),
        Result(
            what="plugin, fetcher and keeper, RssAnon",
            value=shared_bytes,
            shown=units.size(shared_bytes),
            target=200e6,
            target_shown="200 MB",
        ),
        Result(
            what="  their processor time", value=shared_busy, shown=f"{shared_busy:.2%}", target=0.01, target_shown="1%"
        ),
    ]
