"""Processes that live and do nothing are replaced under their readers, crash loops are told, and old kernels are played."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse.mounting import fetcher, worker
from fuse.mounting.device import can_resend
from fuse.mounting.fusectl import Connections
from fuse.mounting.manager import MountManager, MountStatus
from tests.support.adminfetcher import SIZE, content_of
from tests.support.holders import Place, no_zombie_is_left, place
from tests.support.leaks import alive
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]
SUM = hashlib.sha256(content_of("registry.example/m:v1")).hexdigest()
LOOK_S = 0.1


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place(monkeypatch) as made:
        yield made


def reader(path: Path) -> subprocess.Popen[str]:
    """sha256sum of the model. The shell enters the directory, since this process must not wait for the mount."""
    return subprocess.Popen(
        ["sh", "-c", 'cd "$0" && exec sha256sum model.bin', path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(reading: subprocess.Popen[str]) -> str:
    with reading:
        return reading.communicate(timeout=60)[0].split()[0]


def stop(pid: int | None) -> None:
    """Returns when each thread has stopped: until then, one could take a request, of which only the kernel knows then."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    until(lambda: all(_state(task) in "TZ" for task in tasks.iterdir()), f"all threads of {pid} have stopped")


def _state(task: Path) -> str:
    """proc_pid_stat(5): the field after the command, which is in parentheses. Z for a thread that has just ended."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def minor(manager: MountManager, mount_id: str) -> int:
    return manager._mounts[mount_id].minor


@pytest.mark.parametrize("account", ["the kernel's", "the worker's"])
def test_a_stopped_worker_is_replaced_under_a_reader(
    here: Place, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """SIGSTOP, then a read: the worker is killed and another answers; also where the kernel's account cannot be had."""
    if account == "the worker's":
        monkeypatch.setattr(Connections, "waiting", lambda *_: None)
    manager = here.manager(look_s=LOOK_S)
    mount_id, path = here.mount(manager)
    before = manager.status(mount_id)
    stop(before.worker_pid)
    assert finish(reader(path)) == SUM
    after = manager.status(mount_id)
    assert before.worker_pid != after.worker_pid
    assert before.fetcher_pid == after.fetcher_pid
    assert after.worker_restarts.count == 1
    assert "answered nothing for 1 s" in after.worker_restarts.reason
    no_zombie_is_left()


def test_a_stopped_worker_that_nobody_needs_is_left_alone(here: Place) -> None:
    """Nothing looks at a mount on which nothing waits."""
    manager = here.manager(look_s=LOOK_S)
    mount_id, path = here.mount(manager)
    assert finish(reader(path)) == SUM
    watched = manager._supervisor.vitals._watched[manager._mounts[mount_id].device_fd]
    until(lambda: not watched.active, "nothing is looked at any more")
    pid = manager.status(mount_id).worker_pid
    stop(pid)
    assert not watched.active
    assert manager.status(mount_id).worker_pid == pid
    assert manager.status(mount_id).worker_restarts.count == 0


def test_a_stopped_fetcher_is_replaced_under_a_reader(here: Place) -> None:
    """It is killed and another is started, which the worker asks again; that reads wait for it is no fault of the worker's."""
    manager = here.manager(look_s=LOOK_S)
    mount_id, path = here.mount(manager)
    before = manager.status(mount_id)
    stop(before.fetcher_pid)
    assert finish(reader(path)) == SUM
    after = manager.status(mount_id)
    assert before.worker_pid == after.worker_pid
    assert before.fetcher_pid != after.fetcher_pid
    assert after.fetcher_restarts.count == 1
    assert after.fetcher_restarts.reason == "was killed by signal 9"
    assert not alive(before.fetcher_pid or 0)


def test_a_stopped_fetcher_holds_up_no_publish_for_ever(here: Place) -> None:
    """Who waits for its answer is reason enough to look at it."""
    manager = here.manager(look_s=LOOK_S)
    first, _ = here.mount(manager)
    stop(manager.status(first).fetcher_pid)
    second, path = here.mount(manager, "other", reference="registry.example/other:v1")
    assert (path / "model.bin").stat().st_size == SIZE
    assert manager.status(second).fetcher_restarts.count == 1


def test_a_fetcher_that_was_stopped_before_we_came_is_replaced(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left by a holder that was killed, it holds the cache's lock and greets nobody."""
    monkeypatch.setattr("fuse.mounting.fetcher_connection._GREETING_LIMIT_S", 0.5)
    settings = here.manager()._supervisor.fetcher._settings
    client = fetcher.FetcherClient(settings)
    stop(client.connection().pid)
    pid = client.pid
    other = fetcher.FetcherClient(settings)
    assert other.connection().pid != pid
    other.close()
    client.close()


def test_a_crash_loop_is_told(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often, why, since when, and the last words; it goes on being tried, and the mount heals."""
    manager = here.manager(look_s=LOOK_S)
    mount_id, path = here.mount(manager)
    reading = reader(path)
    assert finish(reading) == SUM
    program = worker.PROGRAM
    monkeypatch.setattr(worker, "PROGRAM", ("-c", "import sys; sys.exit('no memory today')"))
    kill(manager.status(mount_id).worker_pid)

    def looping() -> MountStatus | None:
        now = manager.status(mount_id)
        return now if now.condition.reason.startswith("its worker died") else None

    status = until(looping, "the loop is told")
    assert status is not None
    assert status.condition.state == "degraded"
    assert "times in a row" in status.condition.reason
    assert "no memory today" in status.condition.reason
    assert status.condition.since > 0
    assert status.worker_restarts.count >= 5
    monkeypatch.setattr(worker, "PROGRAM", program)
    assert finish(reader(path)) == SUM


def test_a_fetcher_that_keeps_dying_is_told(here: Place) -> None:
    """With its fate."""
    manager = here.manager(look_s=LOOK_S)
    mount_id, _ = here.mount(manager)
    for number in range(1, 6):
        pid = until(lambda: manager.status(mount_id).fetcher_pid, "there is a fetcher")
        kill(pid)
        until(lambda n=number: manager.status(mount_id).fetcher_restarts.count == n, "its death is counted")  # type: ignore[misc]
    words = "the fetcher died 5 times in a row: it was killed by signal 9"
    until(lambda: manager.status(mount_id).condition.reason.startswith(words), "the loop is told")
    assert manager.status(mount_id).condition.state == "degraded"


# ---- kernels before 6.9 ----


def test_this_kernel_says_that_it_can_resend(here: Place) -> None:
    """From its FUSE_INIT, without asking for its version."""
    manager = here.manager()
    mount_id, _ = here.mount(manager)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert can_resend(manager._mounts[mount_id].init) == (release >= (6, 9))
    assert not can_resend(b"short")


def holding(here: Place, manager: MountManager, mount_id: str, path: Path) -> subprocess.Popen[str]:
    """A reader one of whose requests a stopped worker has taken: stopped, since the fetcher does not answer it."""
    status = manager.status(mount_id)
    stop(status.fetcher_pid)
    reading = reader(path)
    until(lambda: manager.status(mount_id).waiting, "a read waits in the worker")
    return reading


def test_without_resend_requests_wait_by_default(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead worker held hangs, what comes later is served, and the condition says so; an unmount ends it."""
    monkeypatch.setenv("WEIGHTLESS_TEST_WITHOUT_RESEND", "1")
    manager = here.manager(look_s=LOOK_S)
    mount_id, path = here.mount(manager)
    pid = manager.status(mount_id).worker_pid
    hanging = holding(here, manager, mount_id, path)
    kill(pid)
    until(lambda: manager.status(mount_id).worker_pid not in (None, pid), "another worker serves")
    os.kill(manager.status(mount_id).fetcher_pid or 0, signal.SIGCONT)
    assert _listed(path) == ["model.bin"]
    until(lambda: "older than 6.9" in manager.status(mount_id).condition.reason, "the condition says so", within_s=40)
    assert hanging.poll() is None
    manager.unmount(mount_id, lazy=True)
    with hanging:
        hanging.kill()


def test_without_resend_the_connection_is_aborted_where_that_is_wanted(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader gets an error, the mount is gone from the tree, and whoever owns it is told; mounted anew, it serves."""
    monkeypatch.setenv("WEIGHTLESS_TEST_WITHOUT_RESEND", "1")
    manager = here.manager(look_s=LOOK_S, without_resend="abort")
    mount_id, path = here.mount(manager)
    pid = manager.status(mount_id).worker_pid
    failing = holding(here, manager, mount_id, path)
    kill(pid)
    with failing:
        said = failing.communicate(timeout=30)[0]
    assert any(os.strerror(code) in said for code in (errno.ENOTCONN, errno.ECONNABORTED)), said
    until(lambda: [status.id for status in here.gone] == [mount_id], "its owner is told")
    os.kill(here.gone[0].fetcher_pid or 0, signal.SIGCONT)
    again, path = here.mount(manager)
    assert again == mount_id
    assert finish(reader(path)) == SUM


def test_sigterm_lets_a_worker_answer_first(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has taken it answers, so that even a kernel that cannot send it again loses nothing; then another serves."""
    monkeypatch.setenv("WEIGHTLESS_TEST_WITHOUT_RESEND", "1")
    manager = here.manager()
    mount_id, path = here.mount(manager)
    before = manager.status(mount_id)
    reading = holding(here, manager, mount_id, path)
    os.kill(before.worker_pid or 0, signal.SIGTERM)
    os.kill(before.fetcher_pid or 0, signal.SIGCONT)
    assert finish(reading) == SUM
    until(lambda: manager.status(mount_id).worker_pid not in (None, before.worker_pid), "another worker serves")
    assert manager.status(mount_id).worker_restarts.reason == "ended with status 0"


def test_without_resend_an_idle_worker_may_die(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held nothing, so nothing is aborted."""
    monkeypatch.setenv("WEIGHTLESS_TEST_WITHOUT_RESEND", "1")
    manager = here.manager(look_s=LOOK_S, without_resend="abort")
    mount_id, path = here.mount(manager)
    assert finish(reader(path)) == SUM
    connections, minor = manager._supervisor.connections, manager._mounts[mount_id].minor
    until(lambda: not connections.waiting(minor), "the end of the reader, which the kernel tells later")
    pid = manager.status(mount_id).worker_pid
    kill(pid)
    until(lambda: manager.status(mount_id).worker_pid not in (None, pid), "another worker serves")
    assert finish(reader(path)) == SUM
    assert here.gone == []


def _listed(path: Path) -> list[str]:
    code = "import os, sys; print(*os.listdir(sys.argv[1]))"
    done: Any = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, path], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.split()
