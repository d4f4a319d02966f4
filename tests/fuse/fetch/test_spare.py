"""Room on the processor: what nobody used, and what we used ourselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse.fetch.spare import Spare


class Machine:
    """Two cores."""

    def __init__(self, directory: Path) -> None:
        self.stat = directory / "stat"
        self.now = self.own = 0.0
        self.idle = self.waiting = 0
        self.passes(0)
        self.spare = Spare(self.stat, lambda: self.now, lambda: self.own)

    def passes(self, seconds: float, *, idle: float = 0.0, disk: float = 0.0, own: float = 0.0) -> None:
        self.now += seconds
        self.own += own
        self.idle += round(idle * 100)
        self.waiting += round(disk * 100)
        self.stat.write_text(f"cpu  900 0 800 {self.idle} {self.waiting} 0 7 0 0 0\ncpu0 1 2 3 4 5\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    assert not found.spare.room()
    return found


@pytest.mark.parametrize(
    ("idle", "disk", "own", "expected"),
    [(0.2, 0, 0, True), (0.02, 0, 0, False), (0.05, 0, 0, False), (0, 0.15, 0, True), (0, 0, 0.1, True)],
)
def test_room_is_most_of_a_core_that_nobody_else_uses(
    machine: Machine, idle: float, disk: float, own: float, expected: bool
) -> None:
    """Idle, waiting for a disk, or used by us: the others did without."""
    machine.passes(0.1, idle=idle, disk=disk, own=own)

    assert machine.spare.room() is expected


def test_a_short_look_says_what_the_last_one_said(machine: Machine) -> None:
    """The kernel counts in hundredths of a second."""
    machine.passes(0.2, idle=0.4)
    assert machine.spare.room()
    machine.passes(0.05)
    assert machine.spare.room()
    machine.passes(0.06)
    assert not machine.spare.room()


def test_what_was_long_ago_says_nothing(machine: Machine) -> None:
    """A machine that was idle for an hour may be busy now."""
    machine.passes(3600, idle=7200)
    assert not machine.spare.room()
    machine.passes(0.2, idle=0.4)
    assert machine.spare.room()


def test_a_system_that_does_not_say_has_room(tmp_path: Path) -> None:
    """No /proc, or another format: nothing is put off."""
    assert Spare(tmp_path / "stat").room()
    (tmp_path / "stat").write_text("intr 1 2 3\n")
    assert Spare(tmp_path / "stat").room()
