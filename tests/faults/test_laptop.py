"""`weightless mount`: the process that holds the mount is killed, with its worker and whatever else, under readers."""

from __future__ import annotations

import pytest

from tests.faults import processes, scale
from tests.faults.arena import Readers, read_once
from tests.faults.content import Model
from tests.faults.registryprocess import Registry
from tests.support.cli import CommandLine
from tests.support.leaks import alive, sandbox
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]


def served(cli: CommandLine) -> bool:
    return [status["worker_pid"] for status in cli.status()] not in ([], [None])


def test_killed_holders(request: pytest.FixtureRequest) -> None:
    """Mounting again takes the mount back from the keeper: no reader notices."""
    chance = scale.chance(request.node.name)
    model = Model(seed=chance.randrange(1 << 30), mebibytes=11, shards=2)
    with sandbox() as box, Registry() as registry:
        cli = CommandLine(box)
        reference = registry.serve(model, "models/one")
        with cli.mounted(reference) as mounted:
            assert [] == read_once("whole", mounted, model).errors
            readers = Readers(mounted, model, chance)
            try:
                for turn in range(scale.by_scale(short=1, full=10)):
                    readers.watch(chance.uniform(0, 0.5))
                    found = processes.find(box.run, "holder", "worker", "fetcher")
                    killed = found["holder"] + (found["worker"] + found["fetcher"] if turn % 2 else [])
                    processes.kill(killed)
                    until(lambda killed=killed: not any(map(alive, killed)), "they are dead")  # type: ignore[misc]
                    cli.run("mount", reference, mounted)
                    until(lambda: served(cli), "somebody holds the mount again", within_s=30)
                    readers.watch(chance.uniform(0, 0.5))
                reports = readers.finish()
            finally:
                readers.kill()
            reports.append(read_once("whole", mounted, model))
            assert [] == [said for report in reports for said in report.errors + report.wrong]
