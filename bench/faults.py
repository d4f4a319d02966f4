"""How long it takes until all is well again, and what it costs: a mount loses its worker, a node with 50 mounts its plugin too.

The readers are those of the fault suite, so wrong bytes would be seen.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench.results import Result
from bench.scale import by_scale
from bench.workshop import memory_bytes
from tests.faults import processes
from tests.faults.arena import REST_S, Arena, Readers, arena, read_once, stalls
from tests.faults.content import Model
from tests.support.waiting import until

MOUNTS: Final = by_scale(small=5, full=50)
_WORKER_BYTES: Final = 50e6
_SHARED_BYTES: Final = 200e6
"""What `bench/memory.py` allows for a worker, and for plugin, fetcher and keeper together."""


def measure() -> list[Result]:
    return [*_one_mount(), *_many_mounts()]


def _one_mount() -> list[Result]:
    def kill_worker(here: Arena) -> None:
        pid = here.one("worker")
        processes.kill([pid])
        until(lambda: [other for other in here.pids("worker") if other != pid], "another worker")

    def kill_plugin(here: Arena) -> None:
        processes.kill(here.pids("plugin", "worker"))
        here.node.kill()
        here.node.start()

    with arena(Model(seed=1, mebibytes=64, shards=4)) as here:
        _must_be_right(here.target, here.model)
        return [
            *_stalls(
                here, "worker killed under 4 readers", kill_worker, times=by_scale(small=2, full=12), rest_after=4
            ),
            *_stalls(here, "plugin and workers killed under 4 readers", kill_plugin, times=by_scale(small=1, full=8)),
        ]


def _stalls(
    here: Arena, what: str, strike: Callable[[Arena], None], *, times: int, rest_after: int = 0
) -> list[Result]:
    """`rest_after` so many strikes, replacements are let serve for as long as it takes until deaths before are forgotten."""
    chance = random.Random(what)
    readers = Readers(here.target, here.model, chance)
    moments = []
    try:
        for _ in range(times):
            readers.watch(chance.uniform(0.5, 1.0))
            moments.append(time.monotonic())
            strike(here)
            if rest_after and len(moments) % rest_after == 0 and len(moments) < times:
                readers.watch(REST_S)
        readers.watch(1.0)
        reports = readers.finish()
    finally:
        readers.kill()
    wrong = sum(len(report.errors) + len(report.wrong) for report in reports)
    found = stalls(reports, moments)
    return [
        Result(what=f"{what}: stall", unit="seconds", samples=tuple(found), target=1.0),
        Result(what=f"  errors and wrong bytes in {times} kills", unit="count", samples=(wrong,), target=0),
    ]


def _many_mounts() -> list[Result]:
    with arena(Model(seed=0, mebibytes=5, shards=1)) as here:
        published = [(here.target, here.model)]
        for number in range(1, MOUNTS):
            model = Model(seed=number, mebibytes=5, shards=1)
            reference = here.registry.serve(model, f"models/{number}")
            published.append((here.publish(f"pod-{number}-of-many", reference), model))
        for target, model in published:
            _must_be_right(target, model)
        processes.kill(here.pids("plugin", "worker"))
        killed = time.monotonic()
        here.node.kill()
        probe = subprocess.Popen(
            [sys.executable, "-m", "bench.faults", *(str(target) for target, _ in published)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with probe:
            here.node.start()
            ready_s = time.monotonic() - killed
            assert probe.stdout is not None
            served = [at - killed for at in json.loads(probe.stdout.read())]
        workers = [memory_bytes(pid) for pid in here.pids("worker")]
        shared = sum(memory_bytes(pid) for pid in here.pids("plugin", "fetcher", "keeper"))
        for target, model in random.Random(0).sample(published, 5):
            _must_be_right(target, model)
    assert len(workers) == MOUNTS
    return [
        Result(
            what=f"{MOUNTS} mounts, plugin and workers killed: all served again",
            unit="seconds",
            samples=(max(served),),
            target=30.0,
        ),
        Result(what="  each of them", unit="seconds", samples=tuple(served)),
        Result(what="  the plugin ready", unit="seconds", samples=(ready_s,)),
        Result(
            what="  memory of all processes (RssAnon)",
            unit="bytes",
            samples=(sum(workers) + shared,),
            target=MOUNTS * _WORKER_BYTES + _SHARED_BYTES,
        ),
        Result(what="  the worker of each", unit="bytes", samples=tuple(workers)),
    ]


def _must_be_right(target: Path, model: Model) -> None:
    report = read_once("whole", target, model)
    assert report.errors + report.wrong == []


def main() -> None:
    """Prints, as JSON, when each of the directories was listed: that is never answered from the kernel's memory.

    A program of its own: nobody may wait for a mount who has to start its worker.
    """

    def listed(path: str) -> float:
        os.listdir(path)
        return time.monotonic()

    with ThreadPoolExecutor(len(sys.argv) - 1) as threads:
        print(json.dumps(list(threads.map(listed, sys.argv[1:]))))


if __name__ == "__main__":
    main()
