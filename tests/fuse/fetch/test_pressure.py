"""Memory that is short is seen: on the node, in the process's own cgroup, and without PSI; and only while it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse.fetch.pressure import Pressure

MEMINFO = "MemTotal:       1000000 kB\nMemFree:        10 kB\nMemAvailable:   {available} kB\n"
PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9999999\n"


class Node:
    def __init__(self, directory: Path) -> None:
        self.proc, self.cgroups = directory / "proc", directory / "cgroup"
        (self.proc / "pressure").mkdir(parents=True)
        (self.proc / "self").mkdir()
        (self.cgroups / "pod/fetcher").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text("4:memory:/elsewhere\n0::/pod/fetcher\n")
        self.available(500_000)
        self.stalled("node", 0)
        self.stalled("cgroup", 0)
        self.pressure = Pressure(self.proc, self.cgroups)

    def available(self, kib: int) -> None:
        (self.proc / "meminfo").write_text(MEMINFO.format(available=kib))

    def stalled(self, where: str, microseconds: int) -> None:
        path = self.proc / "pressure/memory" if where == "node" else self.cgroups / "pod/fetcher/memory.pressure"
        path.write_text(PSI.format(total=microseconds))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("where", ["node", "cgroup"])
def test_waiting_for_memory_is_pressure(node: Node, where: str) -> None:
    """A tenth of the time and more; what was before the first look says nothing, and it ends when nobody waits any more."""
    node.stalled(where, 10**9)
    assert not node.pressure.is_short(100.0)
    node.stalled(where, 10**9 + 90_000)
    assert not node.pressure.is_short(101.0)
    node.stalled(where, 10**9 + 390_000)
    assert node.pressure.is_short(103.0)
    assert not node.pressure.is_short(105.0)


def test_little_left_is_pressure_without_psi(node: Node) -> None:
    """A kernel that does not count stalls still says how much there is."""
    (node.proc / "pressure/memory").unlink()
    (node.cgroups / "pod/fetcher/memory.pressure").unlink()
    assert not node.pressure.is_short(0.0)
    node.available(29_000)
    assert node.pressure.is_short(1.0)
    node.available(31_000)
    assert not node.pressure.is_short(2.0)


def test_it_looks_once_a_second(node: Node) -> None:
    """It is asked with a lock held, after each request."""
    assert not node.pressure.is_short(0.0)
    node.available(1)
    assert not node.pressure.is_short(0.9)
    assert node.pressure.is_short(1.0)


def test_a_system_that_says_nothing_is_not_short(tmp_path: Path) -> None:
    """No /proc, no cgroup: prefetch goes on."""
    assert not Pressure(tmp_path, tmp_path).is_short(0.0)
