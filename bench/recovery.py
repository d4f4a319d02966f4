"""How long a node's mounts are unserved when the node plugin and all its workers are killed at once, and it is started again."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

from bench import synthetic
from bench.results import Result
from bench.workshop import memory_bytes, mounts, plugin, published, workshop
from weightless import units
from weightless.demo.registry import ModelRegistry

MOUNTS = 50


def measure() -> list[Result]:
    with ExitStack() as stack:
        directory = stack.enter_context(workshop())
        registry = stack.enter_context(ModelRegistry())
        node = stack.enter_context(plugin(directory, "recovery"))
        targets = []
        for number in range(MOUNTS):
            model = synthetic.serve(registry, f"bench/recovery{number}", 10**9)
            reference = f"{registry.host}/{model.repository}:v1"
            targets.append(stack.enter_context(published(node, f"recovery{number}", reference, prefetch="none")))
        dead = {node.pid, *(mount.worker_pid for mount in mounts(node) if mount.worker_pid)}
        began = time.monotonic()
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        node.stop()
        node.start()
        ready_s = time.monotonic() - began
        for target in targets:
            (target / "config.json").read_bytes()
        read_s = time.monotonic() - began
        held = mounts(node)
        pids = {pid for mount in held for pid in (mount.worker_pid, mount.keeper_pid, mount.fetcher_pid) if pid}
        memory = sum(memory_bytes(pid) for pid in {node.pid, *pids})
    what = f"{MOUNTS} mounts, plugin and workers killed"
    return [
        Result(what=f"{what}: ready", value=ready_s, shown=f"{ready_s:.1f} s"),
        Result(what="  a file of each was read", value=read_s, shown=f"{read_s:.1f} s", target=30, target_shown="30 s"),
        Result(what="  RssAnon of all processes", value=memory, shown=units.size(memory)),
    ]
