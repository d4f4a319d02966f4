"""Whatever is killed, and whenever: four readers see no error and no wrong byte, and nothing is fetched twice but what was
under way.

What is asserted of the bytes does not depend on the clock. A kill loses what is not yet a whole block in the cache: at most one
block for each connection that the fetcher had. Everything that had become a block is there for the successor.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.faults import processes, scale
from tests.faults.arena import Arena, arena
from tests.faults.content import Model
from tests.faults.idmapped import id_mapped
from tests.support.leaks import alive
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]


@contextmanager
def published(chance: Random) -> Iterator[Arena]:
    model = Model(seed=chance.randrange(1 << 30), mebibytes=scale.by_scale(short=36, full=256), shards=6)
    with arena(model) as here:
        yield here


def kill_one(here: Arena, kind: processes.Kind, how: signal.Signals = signal.SIGKILL) -> None:
    """Ends the process of this kind and waits for its successor to be there: the next strike has somebody to hit."""
    pid = here.one(kind)
    processes.kill([pid], how)
    until(lambda: not alive(pid), f"the {kind} is dead")
    until(lambda: here.pids(kind), f"another {kind}", within_s=30)


def restart(here: Arena, *kinds: processes.Kind) -> None:
    """Kills the plugin and these others at once, and starts the plugin again, as kubelet does."""
    pids = here.pids("plugin", *kinds)
    processes.kill(pids)
    here.node.kill()
    here.node.start()


def test_killed_workers(request: pytest.FixtureRequest) -> None:
    """kill -9 of the worker at random moments: the next one takes the mount over."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        times = scale.by_scale(short=4, full=100)
        here.try_under_readers("worker, kill -9", chance, lambda: kill_one(here, "worker"), times=times, rest_after=4)


@scale.only_full
def test_workers_that_keep_dying(request: pytest.FixtureRequest) -> None:
    """One death after the other: replacements come more slowly then, and still no reader sees an error."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        here.try_under_readers("worker, kill -9 without a rest", chance, lambda: kill_one(here, "worker"), times=20)


def test_killed_fetchers(request: pytest.FixtureRequest) -> None:
    """kill -9 of the fetcher: another one goes on with the blocks that are on the disk."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        times = scale.by_scale(short=3, full=20)
        here.try_under_readers("fetcher, kill -9", chance, lambda: kill_one(here, "fetcher"), times=times)


def test_a_killed_keeper_is_not_noticed(request: pytest.FixtureRequest) -> None:
    """kill -9 of the keeper: nothing at all happens, and nothing is fetched twice; another one is filled."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        times = scale.by_scale(short=2, full=20)
        workers = here.pids("worker", "fetcher", "plugin")
        here.try_under_readers("keeper, kill -9", chance, lambda: kill_one(here, "keeper"), times=times, lossy=False)
        assert workers == here.pids("worker", "fetcher", "plugin")


def test_killed_plugins_with_all_their_workers(request: pytest.FixtureRequest) -> None:
    """kill -9 of the node plugin and of its workers at once: its successor takes the mounts back from the keeper."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        times = scale.by_scale(short=3, full=20)
        here.try_under_readers("plugin and workers, kill -9", chance, lambda: restart(here, "worker"), times=times)


@scale.only_full
def test_a_whole_container_killed(request: pytest.FixtureRequest) -> None:
    """All processes of the plugin's container at once, as memory.oom.group does; the keeper has a container of its own."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        strike = lambda: restart(here, "worker", "fetcher")  # noqa: E731
        here.try_under_readers("plugin, workers and fetcher, kill -9", chance, strike, times=20)


def test_a_whole_container_killed_under_an_id_mapped_mount(request: pytest.FixtureRequest) -> None:
    """The same for a pod with a user namespace of its own (`hostUsers: false`), whose mount is id-mapped."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        pod = here.box.directory("pod")
        with id_mapped(here.target, pod) as shown:
            times = scale.by_scale(short=1, full=10)
            strike = lambda: restart(here, "worker", "fetcher")  # noqa: E731
            here.try_under_readers("the same, id-mapped mount", chance, strike, times=times, directory=shown)


def test_workers_killed_while_they_start(request: pytest.FixtureRequest) -> None:
    """A worker that is killed, and its successors each within 250 ms of its start: one takes over in the end."""
    chance = scale.chance(request.node.name)

    def strike() -> None:
        pid = here.one("worker")
        for _ in range(chance.randrange(1, 4)):
            processes.kill([pid])
            pid = until(lambda pid=pid: [new for new in here.pids("worker") if new != pid], "a worker", within_s=30)[0]  # type: ignore[misc]
            end = time.monotonic() + chance.uniform(0, 0.25)
            while time.monotonic() < end and alive(pid):
                time.sleep(0.001)
        processes.kill([pid])

    with published(chance) as here:
        times = scale.by_scale(short=1, full=20)
        pause_s = scale.by_scale(short=(0.5, 1.0), full=(1.0, 2.0))
        here.try_under_readers(
            "worker and its starting successors, kill -9", chance, strike, times=times, pause_s=pause_s, rest_after=1
        )


def test_plugins_that_are_asked_to_end(request: pytest.FixtureRequest) -> None:
    """SIGTERM of the plugin, as in every upgrade: what is being answered is answered, the rest waits for the successor."""
    chance = scale.chance(request.node.name)

    def strike() -> None:
        here.node.stop()
        here.node.start()

    with published(chance) as here:
        times = scale.by_scale(short=1, full=20)
        here.try_under_readers("plugin, SIGTERM", chance, strike, times=times)


@scale.only_full
def test_a_worker_that_is_asked_to_end(request: pytest.FixtureRequest) -> None:
    """SIGTERM of a worker alone, which nobody sends but a node that shuts down, is a kill like another."""
    chance = scale.chance(request.node.name)
    with published(chance) as here:
        strike = lambda: kill_one(here, "worker", signal.SIGTERM)  # noqa: E731
        here.try_under_readers("worker, SIGTERM", chance, strike, times=10)
