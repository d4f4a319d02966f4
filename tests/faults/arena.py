"""Where a fault is tried: a node plugin with one published model, a registry, four readers, and the account of what they saw."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from fuse.fetch.settings import FetcherSettings
from tests.faults import processes
from tests.faults.content import MIB, Model
from tests.faults.reader import KINDS, Report
from tests.faults.registryprocess import ROOT, UNREAD_BYTES, Registry
from tests.faults.scale import by_scale
from tests.support.leaks import Sandbox, sandbox
from tests.support.models import name_host
from tests.support.node import Node
from tests.support.waiting import until

CONNECTIONS: Final = FetcherSettings().connections
REST_S: Final = 10.5
READER_END_S: Final = 60.0
PAUSE_S: Final = by_scale(short=(0.05, 0.6), full=(0.1, 1.2))
"""Between two strikes: at least, and at most."""


class Readers:
    """Reader processes on one directory. They are started and ended here, and by nobody who serves the mount."""

    def __init__(self, directory: Path, model: Model, chance: Random, kinds: tuple[str, ...] = KINDS) -> None:
        self._started = {kind: start_reader(kind, directory, model, seed=chance.randrange(1 << 30)) for kind in kinds}
        for process in self._started.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def watch(self, seconds: float) -> None:
        """Lets time pass while they read; one that ends by itself ends the pause."""
        ends = {process.stdout: kind for kind, process in self._started.items()}
        ready, _, _ = select.select(list(ends), [], [], seconds)
        assert not ready, f"the {ends[ready[0]]} reader ended: {ready[0].read()!r}"

    def finish(self) -> list[Report]:
        """Tells them to end, and returns what they saw. A signal that ended one (SIGBUS) is an error that it saw."""
        reports = []
        for process in self._started.values():
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + READER_END_S
        for kind, process in self._started.items():
            reports.append(report_of(kind, process, deadline - time.monotonic()))
        return reports

    def kill(self) -> None:
        """Whatever they are doing; harmless after `finish`."""
        for process in self._started.values():
            process.kill()
        for process in self._started.values():
            end_reader(process)


def start_reader(kind: str, directory: Path, model: Model, *, seed: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.reader", kind, str(directory), model.to_json(), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def report_of(kind: str, process: subprocess.Popen[str], limit_s: float) -> Report:
    """What a reader says at its end, for which it has `limit_s`."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, limit_s))
    if not ready:
        return Report(kind, errors=[f"still waits for its last operation after {READER_END_S:g} s"])
    last = process.stdout.read().strip().rpartition("\n")[2]
    code = process.wait()
    if code or not last.startswith("{"):
        return Report(kind, errors=[f"ended with {code}"])
    return Report(**json.loads(last))


def read_once(kind: str, directory: Path, model: Model, *, limit_s: float = READER_END_S) -> Report:
    """Runs a reader to its end: `whole` or `warm`."""
    process = start_reader(kind, directory, model)
    try:
        return report_of(kind, process, limit_s)
    finally:
        end_reader(process)


def end_reader(process: subprocess.Popen[str]) -> None:
    """Kills it. One that waits where nobody serves ends later, when the sandbox takes the mount away."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(2)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@dataclass(slots=True, kw_only=True)
class Account:
    """What came of one case."""

    case: str
    strikes: int
    reports: list[Report]
    stalls: list[float] = field(default_factory=list)
    """For each strike, the longest that a reader then waited for what needs no registry."""
    bytes_sent: int = 0
    bytes_total: int = 0
    left_early: int = 0
    """Answers of the registry that were not read to their end."""

    @property
    def errors(self) -> list[str]:
        return [f"{report.kind}: {error}" for report in self.reports for error in report.errors]

    @property
    def wrong(self) -> list[str]:
        return [f"{report.kind}: {wrong}" for report in self.reports for wrong in report.wrong]

    def show(self) -> None:
        print(
            HEADING,
            self.row,
            f"sent {self.bytes_sent} of {self.bytes_total} bytes, {self.left_early} answers left",
            sep="\n",
        )
        for report in self.reports:
            print(f"  {report.kind}: {report.operations} operations, the longest {report.worst}")

    @property
    def row(self) -> str:
        median = f"{statistics.median(self.stalls):.2f}" if self.stalls else "-"
        worst = f"{max(self.stalls):.2f}" if self.stalls else "-"
        ratio = f"{self.bytes_sent / self.bytes_total:.4f}" if self.bytes_total else "-"
        operations = sum(report.operations for report in self.reports)
        return (
            f"{self.case:44} {self.strikes:6} {operations:11} {len(self.errors):7} {len(self.wrong):6}"
            f" {median:>8} {worst:>8} {ratio:>9}"
        )


HEADING: Final = (
    f"{'case':44} {'faults':>6} {'operations':>11} {'errors':>7} {'wrong':>6}"
    f" {'median s':>8} {'worst s':>8} {'fetched':>9}"
)
ACCOUNTS: Final[list[Account]] = []
"""Of this run, for the summary at its end."""


class Arena:
    """A running plugin; `target` shows `model` from `registry`."""

    def __init__(self, box: Sandbox, registry: Registry, node: Node, model: Model) -> None:
        self.box = box
        self.registry = registry
        self.node = node
        self.model = model
        self.reference = registry.serve(model, "models/one")
        self.target = node.target("pod-1")
        self._published: list[str] = []

    def pids(self, *kinds: processes.Kind) -> list[int]:
        found = processes.find(self.box.run, *kinds)
        return [pid for kind in kinds for pid in found[kind]]

    def one(self, kind: processes.Kind) -> int:
        """The process of this kind, as soon as there is one."""
        return until(lambda: self.pids(kind), f"a {kind}", within_s=30)[0]

    def publish(self, name: str, reference: str, *, prefetch: str = "none") -> Path:
        target = self.node.target(name)
        self.node.publish(f"csi-{name}", target, {"reference": reference, "prefetch": prefetch})
        self._published.append(name)
        return target

    def unpublish(self, name: str) -> None:
        self.node.unpublish(f"csi-{name}", self.node.target(name))
        self._published.remove(name)

    def unpublish_all(self) -> None:
        """Ends all volumes, with a plugin that is started for that if there is none; nothing may be left then."""
        if self.node.process is None:
            self.node.start()
        for name in list(self._published):
            self.unpublish(name)
        disks = [f"mount {place}" for place in self.box.mounts() if not Path(place).is_relative_to(self.node.kubelet)]
        assert [] == [found for found in self.node.leftovers() if found not in disks]

    def try_under_readers(
        self,
        case: str,
        chance: Random,
        strike: Callable[[], None],
        *,
        times: int,
        lasting_s: float = 0.0,
        pause_s: tuple[float, float] = PAUSE_S,
        rest_after: int = 0,
        lossy: bool = True,
        directory: Path | None = None,
    ) -> Account:
        """Strikes `times` times or for `lasting_s`, whichever is longer, at random moments under four readers.

        After each `rest_after` strikes they are left alone for as long as a worker has to serve until its predecessors' deaths
        are forgotten: how slowly one that keeps dying is replaced is no part of what a death costs.

        It asserts what holds of every case: no error and no wrong byte, then and when everything is read once more at the end.
        Of the bytes it asserts a count: twice was fetched at most one block for each connection at each strike, where `lossy`,
        and what was on its way in an answer that the fetcher left. It leaves some even if nothing is killed, at the end of a
        block, when a reader wants what is far ahead in a long one.
        """
        directory = directory or self.target
        model = self.model
        assert [] == (warmed := read_once("warm", directory, model)).errors + warmed.wrong
        # So slow that it lasts as long as the strikes do.
        cold = model.size - sum(file.size for file in model.files if file.warm)
        self.registry.rate(
            cold / max(lasting_s, times * (sum(pause_s) / 2 + 0.7 + (REST_S / rest_after if rest_after else 0)))
        )
        readers = Readers(directory, model, chance)
        moments: list[float] = []
        try:
            # Nobody has wanted the rest until now.
            self.publish("pod-2", self.reference, prefetch="full")
            readers.watch(chance.uniform(*pause_s))
            end = time.monotonic() + lasting_s
            while len(moments) < times or time.monotonic() < end:
                moments.append(time.monotonic())
                strike()
                readers.watch(chance.uniform(*pause_s))
                if rest_after and len(moments) % rest_after == 0 and len(moments) < times:
                    readers.watch(REST_S)
            self.registry.rate(None)
            readers.watch(0.5)
            account = Account(case=case, strikes=len(moments), reports=readers.finish())
        finally:
            readers.kill()
        account.stalls = stalls(account.reports, moments)
        account.reports.append(read_once("whole", directory, model))
        sent = self.registry.sent(model)
        account.bytes_sent, account.bytes_total, account.left_early = sent.count, model.size, sent.left_early
        ACCOUNTS.append(account)
        account.show()
        assert [] == account.errors
        assert [] == account.wrong
        lost = account.bytes_sent - model.size
        most = len(moments) * CONNECTIONS * MIB if lossy else 0
        assert 0 <= lost <= most + account.left_early * UNREAD_BYTES
        return account


def stalls(reports: list[Report], moments: list[float]) -> list[float]:
    """By moment: the longest operation that was under way then, or began before the next one; what needed no registry counts."""
    found = []
    for moment, following in zip(moments, [*moments[1:], float("inf")], strict=True):
        waits = [
            min(ended, following) - began
            for report in reports
            for began, ended, warm in report.slow
            if warm and ended > moment and began < following
        ]
        found.append(max(waits, default=0.0))
    return found


@contextmanager
def arena(
    model: Model,
    *options: str,
    tokens: bool = False,
    disk: Callable[[Sandbox], AbstractContextManager[None]] | None = None,
) -> Iterator[Arena]:
    """A sandbox with a plugin in it that has published `model`, without prefetch. Nothing may be left at the end.

    `disk` makes the cache's directory a file system of its own.
    """
    with sandbox() as box, ExitStack() as stack:
        if disk is not None:
            stack.enter_context(disk(box))
        registry = stack.enter_context(Registry(tokens=tokens))
        certs_dir = box.directory("certs")
        name_host(certs_dir, registry.host)
        node = Node(box, "--certs-dir", str(certs_dir), *options)
        node.more = ("--native", "off")  # what the kernel shows alone, no fault here can reach
        stack.enter_context(node)
        here = Arena(box, registry, node, model)
        here.publish("pod-1", here.reference)
        yield here
        here.unpublish_all()
