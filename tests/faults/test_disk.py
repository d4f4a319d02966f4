"""What the cache's disk can do to a reader: cost it the cache, and nothing else.

The cache lies on a file system of its own, which fills up or breaks in the middle of a load.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.conftest import need, need_program
from tests.faults import processes, scale
from tests.faults.arena import Arena, arena, end_reader, read_once, report_of, start_reader
from tests.faults.content import MIB, Model
from tests.support.leaks import Sandbox
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, scale.LIMIT]

Disk = Callable[[Sandbox], AbstractContextManager[None]]


def tmpfs(mebibytes: int) -> Disk:
    """A cache directory that holds so much and no more."""

    @contextmanager
    def mounted(box: Sandbox) -> Iterator[None]:
        box.cache.mkdir()
        with _mounted(box.cache, "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0755", "tmpfs"):
            yield

    return mounted


@contextmanager
def on_loop(box: Sandbox) -> Iterator[None]:
    """A cache directory on ext4, on a disk that promises 96 MiB and has 24."""
    box.cache.mkdir()
    disk = box.directory("disk")
    with _mounted(disk, "-t", "tmpfs", "-o", "size=24m", "tmpfs"):
        image = disk / "image"
        with image.open("wb") as file:
            file.truncate(96 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", image], check=True, capture_output=True)
        with _mounted(box.cache, "-o", "loop,errors=remount-ro,commit=1", str(image)):
            yield


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    subprocess.run(["mount", *arguments, place], check=True)
    try:
        yield
    finally:
        # Lazily: the fetcher, whose directory it is, may be about to end.
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(directory: Path) -> None:
    """Takes all that is left of the disk under `directory`."""
    with (directory / "somebody-else").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def forget_pages(directory: Path) -> None:
    """As when memory is short: what was written is from now on what the disk has of it."""
    os.sync()  # errors are those of whoever wrote
    for path in directory.rglob("*.data"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def load(here: Arena, strike: Callable[[], None], afterwards: Callable[[], None] = lambda: None) -> None:
    """Reads everything while it comes, strikes at a quarter of it, and asserts that every byte is right, now and afterwards."""
    here.registry.rate(24_000_000)
    reader = start_reader("whole", here.target, here.model)
    try:
        until(lambda: here.registry.bytes_sent(here.model) > here.model.size // 4, "bytes come")
        strike()
        here.registry.rate(None)
        report = report_of("whole", reader, 60)
    finally:
        end_reader(reader)
    assert [] == report.errors + report.wrong
    afterwards()
    processes.kill(here.pids("worker"))  # the next one checks again what it reads from the disk
    # Once more: from the cache what is there, from the registry what is not, of which there must be some.
    report = read_once("whole", here.target, here.model)
    assert [] == report.errors + report.wrong
    assert here.registry.bytes_sent(here.model) > here.model.size


def test_a_full_disk_is_no_error(request: pytest.FixtureRequest) -> None:
    """A cache of 8 MiB for a model of 34: what has no room is passed through."""
    chance = scale.chance(request.node.name)
    model = Model(seed=chance.randrange(1 << 30), mebibytes=33, shards=3)
    with arena(model, "--prefetch", "full", disk=tmpfs(8)) as here:
        load(here, lambda: None)


@scale.only_full
def test_a_disk_that_fills_up_is_no_error(request: pytest.FixtureRequest) -> None:
    """Somebody else takes all that is left of the disk, in the middle of the load."""
    chance = scale.chance(request.node.name)
    model = Model(seed=chance.randrange(1 << 30), mebibytes=33, shards=3)
    with arena(model, disk=tmpfs(50)) as here:
        load(here, lambda: fill(here.box.cache))


def test_a_disk_that_loses_what_is_written_is_no_error(request: pytest.FixtureRequest) -> None:
    """Writes are taken and fail later, behind everybody's back, and then the file system may make itself read-only."""
    need_program("mkfs.ext4", "e2fsprogs")
    need(Path("/dev/loop-control").exists(), "loop devices are missing (modprobe loop)")
    chance = scale.chance(request.node.name)
    model = Model(seed=chance.randrange(1 << 30), mebibytes=33, shards=3)
    with arena(model, disk=on_loop) as here:
        load(here, lambda: fill(here.box.root / "disk"), lambda: forget_pages(here.box.cache))
