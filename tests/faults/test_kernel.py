"""What an administrator can do to a mount behind our back: abort its connection, unmount it under its users."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuse.mounting.mountinfo import MountTable
from tests.conftest import need
from tests.faults import processes, scale
from tests.faults.arena import Arena, Readers, arena, read_once
from tests.faults.content import Model
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Iterator[Arena]:
    chance = scale.chance(request.node.name)
    with arena(Model(seed=chance.randrange(1 << 30), mebibytes=11, shards=2)) as made:
        assert [] == read_once("whole", made.target, made.model).errors
        yield made


@contextmanager
def connections(here: Arena) -> Iterator[Path]:
    """The kernel's control files, wherever the machine has them."""
    place = here.box.directory("connections")
    mounted = subprocess.run(["mount", "-t", "fusectl", "none", place], check=False, capture_output=True, text=True)
    need(mounted.returncode == 0, f"fusectl cannot be mounted: {mounted.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_an_aborted_connection_is_an_error_at_once_and_a_new_mount_soon(
    here: Arena, request: pytest.FixtureRequest
) -> None:
    """Whoever has a file open gets an error and does not hang; the volume is mounted again for all who come later."""
    entry = MountTable.read().at(here.target)
    assert entry is not None
    readers = Readers(here.target, here.model, scale.chance(request.node.name), ("random", "sequential"))
    try:
        with connections(here) as control:
            (control / str(entry.minor) / "abort").write_text("1")
        until(lambda: not read_once("whole", here.target, here.model).errors, "it is mounted again", within_s=30)
        reports = readers.finish()
    finally:
        readers.kill()
    assert [] == [wrong for report in reports for wrong in report.wrong]
    for report in reports:
        said = {error.rpartition(": ")[2] for error in report.errors}
        assert said, f"the {report.kind} reader has seen nothing of the abort"
        assert said <= {"ENOTCONN", "ECONNABORTED", "ENODEV", "EIO"}, said


def test_unmounting_a_volume_under_its_readers_ends_none_of_them(here: Arena, request: pytest.FixtureRequest) -> None:
    """`umount -l` of a pod's bind: who has files open reads on, through the next worker and beyond the volume's unpublish."""
    here.publish("pod-2", here.reference)
    readers = Readers(here.target, here.model, scale.chance(request.node.name), ("random", "mmap"))
    try:
        subprocess.run(["umount", "--lazy", here.target], check=True)
        readers.watch(0.3)
        processes.kill(here.pids("worker"))
        readers.watch(1.0)
        here.unpublish("pod-1")
        readers.watch(0.3)
        reports = readers.finish()
    finally:
        readers.kill()
    assert [] == [said for report in reports for said in report.errors + report.wrong]


def test_a_volume_unmounted_by_somebody_else_is_unpublished_all_the_same(here: Arena) -> None:
    """Neither the bind nor the shared mount is there any more."""
    shared = [entry.mountpoint for entry in MountTable.read().below(here.node.socket.parent) if entry.ours]
    for place in (here.target, *shared):
        subprocess.run(["umount", "--lazy", place], check=True)
    here.unpublish_all()
