"""Many volumes: a hundred published and unpublished at once, a thousand one after another. What was there before is there
afterwards, and nothing more: mounts, processes, descriptors, threads, memory.

`make test` runs the same with fewer (scale.py). Kubelet's part is played as it plays it: what may succeed later is asked again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import pytest

from tests.csi.harness import code_of
from tests.faults import processes
from tests.faults.scale import LIMIT, by_scale
from tests.support.leaks import sandbox
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import pack_model

pytestmark = [pytest.mark.kernel, LIMIT]

AT_ONCE: Final = 100
IN_A_ROW: Final = by_scale(short=12, full=1000)
MODELS: Final = by_scale(short=2, full=10)
AGAIN: Final = {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
WEIGHTS: Final = os.urandom(1 << 20)
IDLE: Final = 6
"""Connections to the registry and threads that may be idle now and were not then, or were."""
GROWTH_BYTES: Final = 8_000_000
"""What a process may have grown since a third of the volumes: Python's allocator gives pages back when it likes. A leak of what
one volume has (some 30 KB) would be more than twice that in a thousand."""
GROWTH_AT_ONCE_BYTES: Final = 16_000_000
"""In the second hundred at once, where threads leave more behind in the allocator: some 5 MB. Of the dozen in a row that the
short form has, nothing could be said."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one process, or the node, has."""

    mounts: int
    workers: int
    descriptors: dict[str, int]
    threads: dict[str, int]

    def is_within(self, other: Count) -> bool:
        return (
            (self.mounts, self.workers) == (0, 0)
            and all(self.descriptors[kind] <= other.descriptors[kind] + IDLE for kind in self.descriptors)
            and all(self.threads[kind] <= other.threads[kind] + IDLE for kind in self.threads)
        )


NOTHING: Final = Count(0, 0, *(dict.fromkeys(("plugin", "fetcher", "keeper"), 10_000) for _ in range(2)))


def count(node: Node) -> Count:
    own = lasting(node)
    return Count(
        mounts=len(node.sandbox.mounts()),
        workers=len(processes.find(node.sandbox.run, "worker")["worker"]),
        descriptors={kind: len(os.listdir(f"/proc/{pid}/fd")) for kind, pid in own.items()},
        threads={kind: len(os.listdir(f"/proc/{pid}/task")) for kind, pid in own.items()},
    )


def lasting(node: Node) -> dict[str, int]:
    """The processes that live as long as the node plugin."""
    assert node.process is not None
    found = processes.find(node.sandbox.run, "fetcher", "keeper")
    # Not found by its words: a child that is about to become a worker has the same for a moment.
    return {"plugin": node.process.pid, **{kind: pids[0] for kind, pids in found.items()}}


def memory_bytes(node: Node) -> dict[str, int]:
    """What is each process's own (PSS would change with the number of workers that share pages)."""
    found = {}
    for kind, pid in lasting(node).items():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found[kind] = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return found


def growth(node: Node, before: dict[str, int]) -> dict[str, int]:
    return {kind: used - before[kind] for kind, used in memory_bytes(node).items()}


@pytest.fixture
def references() -> Iterator[list[str]]:
    with FaultyRegistry() as registry, sandbox() as place:
        found = []
        for number in range(MODELS):
            model = place.directory(f"model-{number}")
            (model / "config.json").write_text(f'{{"number": {number}}}')
            (model / "model.safetensors").write_bytes(WEIGHTS)
            pack_model(model).serve(registry, f"models/m{number}", "v1")
            found.append(f"{registry.host}/models/m{number}:v1")
        yield found


class Volume:
    """Half of them by FUSE, the others by the kernel alone where that goes."""

    def __init__(self, node: Node, references: list[str], number: int) -> None:
        self._node = node
        self._model = number % len(references)
        self._target = node.target(f"pod-{number}")
        self._name = f"volume-{number}"
        self._attributes = {
            "csi.weightless.dev/reference": references[self._model],
            "csi.weightless.dev/native": "off" if number // len(references) % 2 else "auto",
        }

    def publish(self) -> None:
        again(lambda: self._node.publish(self._name, self._target, self._attributes))
        assert f'{{"number": {self._model}}}' == (self._target / "config.json").read_text()
        assert (self._target / "model.safetensors").read_bytes() == WEIGHTS

    def unpublish(self) -> None:
        again(lambda: self._node.unpublish(self._name, self._target))


def at_once(volumes: list[Volume]) -> None:
    """All are published at once, then all are taken away at once."""
    with ThreadPoolExecutor(len(volumes)) as pool:
        for step in (Volume.publish, Volume.unpublish):
            for each in [pool.submit(step, volume) for volume in volumes]:
                each.result()


def again(call: Callable[[], None]) -> None:
    def done() -> bool:
        try:
            call()
        except grpc.RpcError as error:
            if code_of(error) in AGAIN:
                return False
            raise
        return True

    until(done, "the call is taken", within_s=120)


def settled(node: Node, before: Count) -> Count:
    """Waits until there is no more than before."""
    last: list[Count] = []

    def no_more() -> bool:
        last[:] = [count(node)]
        return last[0].is_within(before)

    try:
        until(no_more, "everything is as it was", within_s=20)
    except AssertionError:
        raise AssertionError(f"before {before}\nafter  {last[0]}") from None
    return last[0]


def test_nothing_is_left_of_many_volumes(references: list[str]) -> None:
    """At once, then in a row: the counts are as before, and memory does not follow the number of volumes."""
    with sandbox() as place, Node(place, "--plain-http") as node:
        hundred = [Volume(node, references, number) for number in range(AT_ONCE)]
        at_once(hundred)  # from here on, pools of threads and connections have their size
        before = settled(node, NOTHING)
        memory = memory_bytes(node)
        at_once(hundred)
        settled(node, before)
        grown_at_once = growth(node, memory)
        for number in range(IN_A_ROW):
            if number == IN_A_ROW // 3:
                memory = memory_bytes(node)
            volume = Volume(node, references, number)
            volume.publish()
            volume.unpublish()
        after = settled(node, before)
        grown = growth(node, memory)
        print(f"{AT_ONCE} at once: {before}, memory {grown_at_once}")
        print(f"{IN_A_ROW} in a row: {after}, memory {grown} since {memory}")
        assert max(grown_at_once.values()) < GROWTH_AT_ONCE_BYTES, grown_at_once
        assert max(grown.values()) < GROWTH_BYTES, grown
        assert node.leftovers() == []
