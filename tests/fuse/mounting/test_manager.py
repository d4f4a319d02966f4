"""Mounts made, shared and taken down, and failures at every step: with real workers, a real keeper and an invented fetcher.

Every test ends with the proof that no process, mount, socket, file or descriptor is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fuse.errors import Cancelled, Conflict, Corrupt, Forbidden, InvalidRequest, MountFailed, NotFound, Unavailable
from fuse.filesystem.table import View
from fuse.mounting import device, worker
from fuse.mounting.keeper_client import KeeperClient
from fuse.mounting.manager import CHECKPOINTS, ResolvedArtifact
from fuse.mounting.mountinfo import MountTable
from fuse.registry.access import Access
from tests.support.adminfetcher import SIZE, content_of
from tests.support.holders import ACCESS, Place, no_zombie_is_left, place
from tests.support.leaks import alive
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]
REFERENCE = "registry.example/m:v1"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place(monkeypatch) as made:
        yield made


def _kept(here: Place) -> list[str]:
    client = KeeperClient.find(here.box.run / "holder.keeper")
    if client is None:
        return []
    names = client.names()
    client.close()
    return names


def test_a_mount_reads_right_and_is_fully_described(here: Place) -> None:
    """The bytes are the model's; the status names all that serves it."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    assert (path / "model.bin").read_bytes() == content_of(REFERENCE)
    status = manager.status(mount_id)
    assert (status.mountpoint, status.bytes_total, status.prefetch) == (str(path), SIZE, "none")
    assert status.reference.startswith(f"{REFERENCE}@sha256:")
    assert status.condition.state == "healthy"
    assert status.reads > 0
    assert status.grants == ("user",)
    pids = [status.worker_pid, status.keeper_pid, status.fetcher_pid]
    assert all(pid is not None and alive(pid) for pid in pids)
    assert manager.find(path) == mount_id
    manager.close(keep=False)
    assert not any(pid is not None and alive(pid) for pid in pids)
    assert MountTable.read().below(here.box.root) == ()
    no_zombie_is_left()


def test_workers_are_unprivileged_and_hold_nothing_of_ours(here: Place) -> None:
    """Not root, nothing on their streams, a session of their own, none of our other descriptors."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    manager = here.manager()
    mount_id, _ = here.mount(manager)
    pid = manager.status(mount_id).worker_pid
    assert pid is not None
    status = Path(f"/proc/{pid}/status").read_text()
    # Not the fetcher's user: as the owner of the cache's files a worker could write them, through a descriptor that only reads.
    assert "Uid:\t65533\t65533" in status
    assert "Gid:\t65533\t65533" in status
    assert "Groups:\t \n" in status
    assert os.getsid(pid) == pid
    links = [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in os.listdir(f"/proc/{pid}/fd")]
    assert str(Path(f"/proc/self/fd/{writer}").readlink()) not in links
    assert [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (0, 1)] == ["/dev/null"] * 2
    os.close(reader)
    os.close(writer)


def test_the_fetcher_is_told_what_may_be_native_the_next_time(here: Place) -> None:
    """Then it makes files of what has to be files for that: not for a strict mount, nor where nobody wants native ones."""
    manager = here.manager(copy_out=True)
    for verify in ("lazy", "strict"):
        here.mount(manager, verify, verify=verify)
    here.mount(here.manager("other"), "other")
    assert [True, False, False] == [entry[3] for entry in here.requests("Attach")]


def test_equal_artifacts_share_one_mount(here: Place) -> None:
    """The second user of an artifact gets the first one's mount, and counts; the last one may unmount it."""
    manager = here.manager()
    first, path = here.mount(manager, grant="a")
    second, _ = here.mount(manager, "elsewhere", grant="b")
    assert first == second
    assert manager.status(first).mountpoint == str(path)
    assert manager.status(first).grants == ("a", "b")
    assert len(here.requests("Attach")) == 1
    assert manager.release(first, "a") == 1
    assert manager.release(first, "a") == 1
    assert not manager.unmount(first, unused_only=True)
    assert manager.release(first, "b") == 0
    assert [entry[2] for entry in here.requests("Revoke")] == ["a", "b"]
    assert (path / "model.bin").stat().st_size == SIZE
    manager.unmount(first)
    manager.unmount(first)
    assert manager.release(first, "a") == 0
    assert manager.statuses() == []
    with pytest.raises(NotFound):
        manager.status(first)


def test_other_artifacts_and_views_get_mounts_of_their_own(here: Place) -> None:
    """What is shown decides what is shared."""
    manager = here.manager()
    here.mount(manager, "one")
    here.mount(manager, "two", reference="registry.example/other:v1")
    artifact = manager.resolve(REFERENCE, ACCESS, View(exclude=("*.md",)))
    path = here.box.directory("three")
    assert manager.acquire(artifact, path, prefetch="none", grant="x", access=ACCESS) == artifact.identity
    assert len({status.worker_pid for status in manager.statuses()}) == 3


def test_equal_digests_of_two_registries_share_no_mount(here: Place) -> None:
    """Who has a registry that calls a stranger's digest its own gets a mount of its own, and serves the stranger nothing."""
    manager = here.manager()
    ours, _ = here.mount(manager, "ours")
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    copied = replace(artifact, reference=f"evil.example/m@{artifact.digest}")
    theirs = manager.acquire(
        copied,
        here.box.directory("theirs"),
        prefetch="none",
        grant="x",
        access=Access(registry="evil.example", endpoints=()),
    )
    assert theirs != ours
    assert len({status.worker_pid for status in manager.statuses()}) == 2


def test_prefetch_is_what_any_user_wants(here: Place) -> None:
    """One user who wants all of it turns prefetching on for the mount; without that user it is off again."""
    manager = here.manager()
    mount_id, path = here.mount(manager, grant="lazy")
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    manager.acquire(artifact, path, prefetch="full", grant="eager", access=ACCESS)
    assert manager.status(mount_id).prefetch == "full"
    manager.release(mount_id, "eager")
    assert manager.status(mount_id).prefetch == "none"


def test_concurrent_users_of_one_artifact_join(here: Place) -> None:
    """Eight at once make one mount with eight grants."""
    manager = here.manager()
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    path = here.box.directory("mount")

    def acquire(number: int) -> str:
        return manager.acquire(artifact, path, prefetch="none", grant=f"user{number}", access=ACCESS)

    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(acquire, range(8)))
    assert len(ids) == 1
    assert len(manager.status(ids.pop()).grants) == 8
    assert len(here.requests("Attach")) == 1


def test_a_user_who_waited_for_a_mount_that_failed_makes_it(here: Place) -> None:
    """The failure of one is not the failure of the other: who joined tries with its own grant."""
    manager = here.manager()
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    path = here.box.directory("mount")
    second: list[threading.Thread] = []

    def fail(step: str) -> None:
        if step == "mounted":
            thread = threading.Thread(
                target=manager.acquire,
                args=(artifact, path),
                kwargs={"prefetch": "none", "grant": "second", "access": ACCESS},
            )
            thread.start()
            second.append(thread)
            raise Cancelled("the first was cancelled")

    with pytest.raises(Cancelled):
        manager.acquire(artifact, path, prefetch="none", grant="first", access=ACCESS, checkpoint=fail)
    second[0].join(30)
    assert manager.status(artifact.identity).grants == ("second",)


@pytest.mark.parametrize("step", CHECKPOINTS)
def test_a_failure_after_any_step_leaves_nothing(here: Place, step: str) -> None:
    """No mount, no worker, nothing attached or kept; and the next try works."""
    manager = here.manager()

    def fail(reached: str) -> None:
        if reached == step:
            raise Cancelled("stopped here")

    with pytest.raises(Cancelled):
        here.mount(manager, checkpoint=fail)
    assert MountTable.read().below(here.box.root) == ()
    assert manager.statuses() == []
    assert len(here.requests("Detach")) == 1
    assert _kept(here) == []
    assert not [line for line in here.box.processes().values() if "fuse.worker" in line]
    _, path = here.mount(manager)
    assert (path / "model.bin").read_bytes() == content_of(REFERENCE)


def test_mount_points_that_cannot_be_used_are_refused(here: Place) -> None:
    """A file, nothing, something mounted already: named, and nothing happens."""
    manager = here.manager()
    _, mounted = here.mount(manager, "taken")
    other = manager.resolve("registry.example/other:v1", ACCESS, View())
    (here.box.root / "file").touch()
    for name, kind in (("file", InvalidRequest), ("missing", InvalidRequest), ("taken", Conflict)):
        with pytest.raises(kind) as caught:
            manager.acquire(other, here.box.root / name, prefetch="none", grant="x", access=ACCESS)
        assert caught.value.where == str(here.box.root / name)
    assert len(manager.statuses()) == 1
    assert (mounted / "model.bin").stat().st_size == SIZE


def test_a_refused_grant_fails_the_mount_and_no_other(here: Place) -> None:
    """What the fetcher says is what the caller hears; who shares already is not disturbed."""
    manager = here.manager()
    with pytest.raises(Forbidden):
        here.mount(manager, grant="refused")
    assert manager.statuses() == []
    mount_id, path = here.mount(manager, grant="welcome")
    with pytest.raises(Forbidden):
        here.mount(manager, grant="refused")
    assert manager.status(mount_id).grants == ("welcome",)
    assert (path / "model.bin").stat().st_size == SIZE


def test_a_fetcher_that_always_dies_fails_the_mount(here: Place) -> None:
    """After a few tries the caller is told, and nothing is left."""
    manager = here.manager()
    with pytest.raises(Unavailable):
        here.mount(manager, grant="fatal")
    assert MountTable.read().below(here.box.root) == ()
    _, path = here.mount(manager)
    assert (path / "model.bin").stat().st_size == SIZE


def test_a_worker_that_cannot_start_is_quoted(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words are in the error; the mount is gone."""
    manager = here.manager()
    monkeypatch.setattr(worker, "PROGRAM", ("-c", "import sys; sys.exit('the interpreter is on fire')"))
    with pytest.raises(MountFailed, match=r"ended with status 1 .*the interpreter is on fire"):
        here.mount(manager)
    assert MountTable.read().below(here.box.root) == ()


def test_a_worker_that_never_serves_is_given_up(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit holds, and the worker is killed."""
    manager = here.manager(start_limit_s=0.5)
    monkeypatch.setattr(worker, "_STOP_GRACE_S", 0.2)
    monkeypatch.setattr(worker, "PROGRAM", ("-c", "import time; time.sleep(60)"))
    with pytest.raises(MountFailed, match="does not serve after"):
        here.mount(manager)
    assert not [line for line in here.box.processes().values() if "sleep" in line]


def test_what_a_worker_says_of_its_failure_is_raised(here: Place) -> None:
    """A table that is not what it should be: the worker's own error reaches the caller."""
    manager = here.manager()
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    wrong = ResolvedArtifact(
        **{
            **{name: getattr(artifact, name) for name in ResolvedArtifact.__slots__},
            "table": f"sha256:{'0' * 64}",
        }
    )
    with pytest.raises(Corrupt, match="inode table"):
        manager.acquire(wrong, here.box.directory("mount"), prefetch="none", grant="x", access=ACCESS)


def test_a_busy_mount_stays_until_it_is_unmounted_lazily(here: Place) -> None:
    """Refused while somebody reads, and read on; lazily it goes, and the reader gets an error, not a hang."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    code = (
        f"f = open('{path}/model.bin', 'rb'); print(flush=True); input()\n"
        "print(len(f.read()), flush=True); input(); f.read(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdout.readline()
        with pytest.raises(Conflict, match=f"process {reader.pid} "):
            manager.unmount(mount_id)
        reader.stdin.write(b"\n")
        reader.stdin.flush()
        assert int(reader.stdout.readline()) == SIZE
        manager.unmount(mount_id, lazy=True)
        assert manager.statuses() == []
        reader.stdin.write(b"\n")
        reader.stdin.flush()
        reader.wait(10)


def test_something_mounted_over_it_is_not_unmounted(here: Place) -> None:
    """The mount on top is somebody else's."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    try:
        with pytest.raises(Conflict, match="tmpfs is mounted over it"):
            manager.unmount(mount_id)
    finally:
        subprocess.run(["umount", str(path)], check=True)
    assert manager.status(mount_id).condition.state == "healthy"
    manager.unmount(mount_id)


def test_a_mount_that_a_user_unmounts_is_noticed(here: Place) -> None:
    """Its processes end, and the owner is told once."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    pid = manager.status(mount_id).worker_pid
    subprocess.run(["umount", str(path)], check=True)
    until(lambda: here.gone, "the owner is told")
    assert [status.id for status in here.gone] == [mount_id]
    assert manager.statuses() == []
    assert _kept(here) == []
    assert pid is not None
    assert not alive(pid)
    _, path = here.mount(manager)
    assert (path / "model.bin").stat().st_size == SIZE


def test_binds_are_told_as_targets_and_keep_it_alive(here: Place) -> None:
    """The mount table knows where else it is."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    target = here.box.directory("target")
    device.bind(path, target)
    assert manager.status(mount_id).targets == (str(target),)
    assert (target / "model.bin").stat().st_size == SIZE
    device.unmount(target)
    assert manager.status(mount_id).targets == ()


def test_nothing_hangs_on_a_worker_that_is_stopped(here: Place) -> None:
    """Status, bind, checks and unmount ask the kernel's tables, never the file system."""
    manager = here.manager()
    mount_id, path = here.mount(manager)
    target = here.box.directory("target")
    pid = manager.status(mount_id).worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert manager.status(mount_id).id == mount_id
    assert manager.statuses()[0].worker_pid == pid
    device.bind(path, target)
    with pytest.raises(Conflict):
        device.usable_mountpoint(path)
    device.unmount(target)
    assert time.monotonic() - began < 5
    os.kill(pid, signal.SIGCONT)


def test_a_stopped_worker_is_killed_at_the_unmount(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not end when told is made to."""
    monkeypatch.setattr(worker, "_STOP_GRACE_S", 0.3)
    manager = here.manager()
    mount_id, _ = here.mount(manager)
    pid = manager.status(mount_id).worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    manager.unmount(mount_id)
    assert not alive(pid)


def test_mounting_and_unmounting_at_the_same_time_ends_well(here: Place) -> None:
    """Three users come and go as they like: each either shares, makes or finds the mount gone, and nothing is left."""
    manager = here.manager()
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    path = here.box.directory("mount")

    def come_and_go(user: int) -> None:
        for turn in range(3):
            grant = f"{user}-{turn}"
            mount_id = manager.acquire(artifact, path, prefetch="none", grant=grant, access=ACCESS)
            assert (path / "model.bin").stat().st_size == SIZE
            manager.release(mount_id, grant)
            manager.unmount(mount_id, lazy=True, unused_only=True)

    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(come_and_go, user) for user in range(3)]:
            future.result(50)
    for status in manager.statuses():
        manager.unmount(status.id)
    assert MountTable.read().below(here.box.root) == ()


def test_a_holder_of_the_same_name_is_refused(here: Place) -> None:
    """Two would take each other's mounts; the first is not disturbed."""
    manager = here.manager()
    with pytest.raises(Conflict, match="'holder' runs already"):
        here.manager()
    _, path = here.mount(manager)
    assert (path / "model.bin").stat().st_size == SIZE


def test_after_close_nothing_is_mounted_any_more(here: Place) -> None:
    """A late acquire is told that the process is ending; closing twice is no error."""
    manager = here.manager()
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    manager.close(keep=False)
    manager.close(keep=False)
    with pytest.raises(Cancelled):
        manager.acquire(artifact, here.box.directory("mount"), prefetch="none", grant="x", access=ACCESS)


def test_no_secret_is_in_the_status(here: Place) -> None:
    """What commands print knows nothing of credentials."""
    manager = here.manager()
    here.mount(manager)
    assert b"access" not in msgspec.json.encode(manager.statuses())


def test_each_label_has_a_mount_that_the_kernel_is_told_of(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the configuration, for who asks for none; equal ones are shared."""
    told, real = [], device.mount

    def mount(fd: int, mountpoint: Path, label: str = "") -> None:
        told.append(label)
        real(fd, mountpoint)

    monkeypatch.setattr(device, "mount", mount)
    manager = here.manager(label="a:b:c:s0")
    artifact = manager.resolve(REFERENCE, ACCESS, View())
    for number, label in enumerate(("a:b:c:s0", "a:b:c:s0:c1,c2", "a:b:c:s0")):
        asked = replace(artifact, label=label) if number == 1 else artifact
        manager.acquire(asked, here.box.directory(f"m{number}"), prefetch="none", grant=f"g{number}", access=ACCESS)
    assert told == ["a:b:c:s0", "a:b:c:s0:c1,c2"]
    assert [("g0", "g2"), ("g1",)] == [status.grants for status in manager.statuses()]
