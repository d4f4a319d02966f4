"""A worker that is started ahead of need: who takes it, and that nobody misses it when it dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fuse.errors import MountFailed
from fuse.mounting import spares
from fuse.mounting.manager import MountManager
from tests.support.holders import Place, no_zombie_is_left, place
from tests.support.leaks import serves_mount
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(spares, "PAUSE_S", 0.1)
    with place(monkeypatch) as made:
        yield made


def workers(here: Place) -> set[int]:
    return {pid for pid, command in here.box.processes().items() if "fuse.worker" in command}


def idle(here: Place) -> set[int]:
    return {pid for pid in workers(here) if not serves_mount(pid)}


def the_spare(here: Place, *, other_than: int = -1) -> int:
    (pid,) = until(lambda: idle(here) - {other_than}, "there is a spare worker")
    return int(pid)


def test_the_next_mount_takes_it_and_another_one_is_made(here: Place) -> None:
    manager = here.manager(spare_worker=True)
    spare = the_spare(here)
    mount_id, path = here.mount(manager)
    assert spare == manager.status(mount_id).worker_pid
    assert path.joinpath("model.bin").is_file()
    assert the_spare(here) != spare
    manager.close(keep=False)
    assert set() == workers(here)
    no_zombie_is_left()


def test_it_takes_over_from_one_that_dies(here: Place) -> None:
    """Whose end it then tells, as any worker."""
    manager = here.manager(spare_worker=True)
    mount_id, path = here.mount(manager)
    for _ in range(3):
        # The one that has just taken over may not have its device yet.
        spare = the_spare(here, other_than=manager.status(mount_id).worker_pid)
        until(lambda: manager._supervisor.spares.ready, "it is known to be there")
        kill(manager.status(mount_id).worker_pid)
        until(lambda spare=spare: manager.status(mount_id).worker_pid == spare, "the spare one serves")  # type: ignore[misc]
        assert path.joinpath("model.bin").is_file()
    assert 3 == manager.status(mount_id).worker_restarts.count


def test_nobody_misses_one_that_died(here: Place) -> None:
    """No other is made before somebody has needed one: what kills it might kill the next."""
    manager = here.manager(spare_worker=True)
    spare = the_spare(here)
    kill(spare)
    until(lambda: not workers(here), "it is gone")
    mount_id, path = here.mount(manager)
    assert spare != manager.status(mount_id).worker_pid
    assert path.joinpath("model.bin").is_file()
    assert the_spare(here) != spare


def test_one_that_dies_while_it_is_taken_is_told_to_who_took_it_or_not_taken(here: Place) -> None:
    """Whichever comes first: no mount is left with a dead worker that nobody knows of."""
    manager = here.manager(spare_worker=True)
    for number in range(5):
        kill(the_spare(here))
        try:
            mount_id, path = here.mount(manager, f"mount-{number}", reference=f"registry.example/m{number}:v1")
        except MountFailed:
            continue  # as for any worker that dies at its start: the caller tries again
        until(lambda mount_id=mount_id: served(manager, mount_id), "it is served")  # type: ignore[misc]
        assert path.joinpath("model.bin").is_file()
        manager.unmount(mount_id)


def test_without_being_wanted_there_is_none(here: Place) -> None:
    manager = here.manager()
    here.mount(manager)
    assert set() == idle(here)


def served(manager: MountManager, mount_id: str) -> bool:
    pid = manager.status(mount_id).worker_pid
    return pid is not None and serves_mount(pid)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
