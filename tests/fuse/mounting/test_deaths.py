"""Whatever dies, a mount goes on: worker, fetcher, keeper, holder, and all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.mounting import device, worker
from fuse.mounting.keeper_client import KeeperClient
from fuse.mounting.manager import MountManager, MountStatus
from fuse.mounting.reasons import Reason
from tests.support import holderprocess
from tests.support.adminfetcher import SIZE, content_of
from tests.support.holders import Place, no_zombie_is_left, place
from tests.support.leaks import alive
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]
CONTENT = content_of("registry.example/m:v1")
HALF = SIZE // 2


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place(monkeypatch) as made:
        yield made


class Reader:
    """A program that reads the first half at once and the rest when told to."""

    def __init__(self, path: Path) -> None:
        code = (
            f"import hashlib\nf = open('{path}/model.bin', 'rb', buffering=0)\nh = hashlib.sha256(f.read({HALF}))\n"
            "print(flush=True)\ninput()\n"
            "while b := f.read(1 << 20): h.update(b)\nprint(h.hexdigest())"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def finish(self) -> str:
        with self.process as process:
            return process.communicate("\n", timeout=30)[0].strip()


def _sum() -> str:
    import hashlib

    return hashlib.sha256(CONTENT).hexdigest()


def _kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _healthy(manager: MountManager, mount_id: str) -> MountStatus:
    def status() -> MountStatus | None:
        now = manager.status(mount_id)
        return now if now.condition.state == "healthy" and now.worker_pid and now.fetcher_pid else None

    found = until(status, "the mount is healthy")
    assert found is not None
    return found


def test_a_killed_worker_is_replaced_under_an_open_file(here: Place) -> None:
    """The reader notices nothing; the dead worker is no zombie."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    reader = Reader(path)
    before = manager.status(mount_id).worker_pid
    _kill(before)
    assert reader.finish() == _sum()
    assert _healthy(manager, mount_id).worker_pid != before
    no_zombie_is_left()


def test_a_worker_that_keeps_dying_is_replaced_again_and_again(here: Place) -> None:
    """Also when it dies right after its start."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    seen: set[int | None] = set()
    for _ in range(4):
        status = _healthy(manager, mount_id)
        assert status.worker_pid not in seen
        seen.add(status.worker_pid)
        _kill(status.worker_pid)
        dead = status.worker_pid
        until(lambda: manager.status(mount_id).worker_pid != dead, "the death is noticed")  # noqa: B023
    assert Reader(path).finish() == _sum()


def test_while_no_worker_starts_the_mount_is_degraded_and_waits(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The condition says why; a reader waits, and goes on when a worker starts at last."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    reader = Reader(path)
    program = worker.PROGRAM
    monkeypatch.setattr(worker, "PROGRAM", ("-c", "import sys; sys.exit('no memory')"))
    _kill(manager.status(mount_id).worker_pid)

    def why() -> str | None:
        condition = manager.status(mount_id).condition
        return condition.reason_code if condition.state == "degraded" and "no memory" in condition.reason else None

    assert until(why, "it is degraded") in (Reason.WORKER_REPLACED, Reason.WORKER_CRASH_LOOP)
    assert until(lambda: why() == Reason.WORKER_CRASH_LOOP, "it is known to keep dying")
    assert not here.gone
    monkeypatch.setattr(worker, "PROGRAM", program)
    assert reader.finish() == _sum()
    assert _healthy(manager, mount_id)


def test_a_mount_without_worker_can_be_unmounted(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a worker that cannot start, nor for one that never answers."""
    manager = here.manager()
    mount_id, _ = here.mount(manager)
    monkeypatch.setattr(worker, "PROGRAM", ("-c", "import time; time.sleep(60)"))
    pid = manager.status(mount_id).worker_pid
    _kill(pid)
    until(
        lambda: manager._mounts[mount_id].worker is not None and manager.status(mount_id).worker_pid not in (None, pid),
        "another starts",
    )
    manager.unmount(mount_id)
    assert manager.statuses() == []


def test_a_killed_fetcher_is_replaced_and_told_everything_again(here: Place) -> None:
    """Every mount is attached anew, every grant given anew, and reads that wait are answered by the new one."""
    manager = here.manager()
    mount_id, path = here.mount(manager, grant="a")
    here.mount(manager, grant="b")
    other, _ = here.mount(manager, "other", reference="registry.example/other:v1", grant="c")
    reader = Reader(path)
    before = manager.status(mount_id)
    _kill(before.fetcher_pid)
    assert reader.finish() == _sum()
    after = _healthy(manager, mount_id)
    assert after.fetcher_pid != before.fetcher_pid
    assert after.worker_pid == before.worker_pid
    until(lambda: len(here.requests("Grant")) == 6, "all grants are given anew")
    granted = [(mount, grant) for _, mount, grant, *_ in here.requests("Grant")]
    assert sorted(granted[3:]) == sorted([(mount_id, "a"), (mount_id, "b"), (other, "c")])
    assert len(here.requests("Attach")) == 4
    no_zombie_is_left()


def test_a_session_that_ends_alone_is_replaced(here: Place) -> None:
    """A fetcher that lives and hangs up on a worker gives it another session; the reader notices nothing."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    reader = Reader(path)
    before = manager.status(mount_id)
    here.mount(manager, grant="hang_up")
    assert reader.finish() == _sum()
    after = _healthy(manager, mount_id)
    assert (after.fetcher_pid, after.worker_pid) == (before.fetcher_pid, before.worker_pid)
    assert len(here.requests("Attach")) == 2


def test_a_fetcher_that_hangs_holds_up_no_unmount(here: Place) -> None:
    """Stopped, it answers nobody; a pod can end all the same, and the fetcher learns of it later."""
    manager = here.manager()
    mount_id, _ = here.mount(manager)
    pid = manager.status(mount_id).fetcher_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert manager.release(mount_id, "user") == 0
        assert manager.unmount(mount_id)
        assert time.monotonic() - began < 20
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: here.requests("Detach"), "the fetcher to be told")


def test_without_a_fetcher_mounts_stay_and_wait(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetcher that cannot be started degrades a mount, never ends it."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    reader = Reader(path)
    monkeypatch.setenv("WEIGHTLESS_TEST_FETCHER", "broken")
    _kill(manager.status(mount_id).fetcher_pid)
    until(lambda: manager.status(mount_id).condition.state == "degraded", "it is degraded")
    condition = manager.status(mount_id).condition
    assert "on fire" in condition.reason
    assert condition.reason_code == Reason.FETCHER_DOWN
    monkeypatch.delenv("WEIGHTLESS_TEST_FETCHER")
    assert reader.finish() == _sum()
    assert _healthy(manager, mount_id)


def test_a_killed_keeper_is_replaced_and_filled(here: Place) -> None:
    """What it held is held again, so that a later death of the holder loses nothing."""
    manager = here.manager()
    mount_id, _ = here.mount(manager)
    before = manager.status(mount_id).keeper_pid
    _kill(before)

    def filled() -> bool:
        client = KeeperClient.find(here.box.run / "holder.keeper")
        if client is None:
            return False
        names = client.names()
        client.close()
        return client.pid != before and names == [mount_id]

    until(filled, "a new keeper holds the mount")
    until(lambda: manager.status(mount_id).keeper_pid not in (None, before), "the holder knows it")


def test_worker_fetcher_and_keeper_may_die_at_once(here: Place) -> None:
    """The reader gets the right bytes all the same."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    reader = Reader(path)
    status = manager.status(mount_id)
    for pid in (status.worker_pid, status.keeper_pid, status.fetcher_pid):
        _kill(pid)
    assert reader.finish() == _sum()
    until(lambda: manager.status(mount_id).keeper_pid not in (None, status.keeper_pid), "there is a keeper again")
    assert _healthy(manager, mount_id)


def test_a_successor_takes_over_what_was_kept(here: Place) -> None:
    """close(keep=True) ends all workers, the mount stays, the next holder of the name serves it with its grants."""
    first = here.manager()
    mount_id, path = here.mount(first, grant="a")
    reader = Reader(path)
    pids = first.status(mount_id)
    first.close(keep=True)
    assert pids.worker_pid is not None
    assert not alive(pids.worker_pid)
    second = here.manager()
    assert second.lost() == []
    assert reader.finish() == _sum()
    status = _healthy(second, mount_id)
    assert (status.mountpoint, status.grants, status.bytes_total) == (str(path), ("a",), SIZE)
    assert status.keeper_pid == pids.keeper_pid
    assert second.release(mount_id, "a") == 0
    second.unmount(mount_id)


def test_a_successor_takes_over_from_a_killed_holder(here: Place) -> None:
    """kill -9 of the holder, a read under way: the next holder serves it, and nothing was lost."""
    with holderprocess.start(here.box) as holder:
        path, mount_id = Path(holder.mountpoint), holder.mount_id
        reader = Reader(path)
        worker_pid = holder.worker_pid
        holder.kill()
        until(lambda: not alive(worker_pid), "the worker ends with its holder")
        result: list[str] = []
        waiting = threading.Thread(target=lambda: result.append(reader.finish()))
        waiting.start()
        manager = here.manager()
        waiting.join(30)
        assert result == [_sum()]
        assert _healthy(manager, mount_id).grants == ("user",)


def test_what_was_unmounted_meanwhile_is_told_as_lost(here: Place) -> None:
    """Kept, unmounted by a user, and then the successor comes: it says what was there, and keeps it no longer."""
    first = here.manager()
    mount_id, path = here.mount(first, grant="a")
    first.close(keep=True)
    device.unmount(path)  # umount(8) would ask the file system, and wait
    second = here.manager()
    assert [(lost.mount_id, lost.mountpoint, lost.grants) for lost in second.lost()] == [(mount_id, str(path), ("a",))]
    assert second.statuses() == []
    _, path = here.mount(second)
    assert Reader(path).finish() == _sum()


def test_what_cannot_be_understood_is_told_as_lost(here: Place) -> None:
    """Descriptors of another program, or of another version, do not stop the start."""
    client = KeeperClient.open(here.box.run / "holder.keeper")
    client.keep("strange", [0, 1])
    client.keep("stranger", [0, 1, 2])
    client.close()
    manager = here.manager()
    assert {lost.mount_id for lost in manager.lost()} == {"strange", "stranger"}
    manager.close(keep=False)


def test_without_a_keeper_mounts_end_with_their_holder(here: Place) -> None:
    """A holder that was told to have no keeper starts none, and leaves nothing, even if asked to keep."""
    manager = here.manager(use_keeper=False)
    mount_id, path = here.mount(manager)
    assert manager.status(mount_id).keeper_pid is None
    assert Reader(path).finish() == _sum()
    manager.close(keep=False)
    assert not list(here.box.run.glob("*.keeper"))
