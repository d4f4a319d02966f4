"""Keepers that run by themselves, that are of another version, and that come late; holders that keepers start again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from fuse import keeper, wire
from fuse.errors import Unavailable
from fuse.mounting import device, keeper_client
from fuse.mounting.keeper_client import KeeperClient
from fuse.mounting.mount import Kept, Mount, from_kept
from fuse.spec import MountSpec, Part
from tests.support import holderprocess
from tests.support.adminfetcher import content_of
from tests.support.cli import COMMAND
from tests.support.holders import Place, place
from tests.support.leaks import alive
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]
CONTENT = content_of("registry.example/m:v1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with place(monkeypatch) as made:
        yield made


def _listens(path: Path) -> bool:
    client = KeeperClient.find(path)
    if client is not None:
        client.close()
    return client is not None


@contextmanager
def standing_keeper(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`weightless keeper`, as its own container runs it; ended with SIGTERM, and then nothing of it is left."""
    with subprocess.Popen([COMMAND, "keeper", "--socket", f"unix://{path}"]) as process:
        try:
            until(lambda: _listens(path), "the keeper listens")
            yield process
        finally:
            process.terminate()
            assert process.wait(10) in (0, -signal.SIGKILL)
    if process.returncode == 0:
        assert not path.exists()


def test_the_keeper_command_stays_and_is_small(here: Place) -> None:
    """It holds nothing for nobody, and goes on; it is one small process without our packages."""
    path = here.box.run / "keeper.sock"
    with standing_keeper(path) as process:
        client = KeeperClient.connect(path)
        assert client.pid == process.pid
        assert client.version == keeper.VERSION
        client.close()
        client = KeeperClient.connect(path)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "msgspec" not in maps
        assert "site-packages" not in maps
        client.close()


def test_a_standing_keeper_brings_a_mount_over_and_survives_its_holders(here: Place) -> None:
    """Two holders, one after the other; the keeper belongs to neither, and holds nothing when the mount is gone."""
    path = here.box.run / "keeper.sock"
    with standing_keeper(path) as process:
        first = here.manager(keeper=path)
        mount_id, mountpoint = here.mount(first)
        first.close(keep=True)
        second = here.manager(keeper=path)
        assert second.wait_served(30)
        assert second.status(mount_id).keeper_pid == process.pid
        assert (mountpoint / "model.bin").read_bytes() == CONTENT
        held = _devices(process.pid)
        assert held == 1
        second.unmount(mount_id)
        assert _devices(process.pid) == 0
        assert _devices(os.getpid()) == 0
        second.close(keep=False)
        assert process.poll() is None


def test_without_its_standing_keeper_a_holder_goes_on(here: Place) -> None:
    """It starts none, says so in the condition, ends no mount, and fills the keeper when there is one."""
    path = here.box.run / "keeper.sock"
    manager = here.manager(keeper=path)
    mount_id, mountpoint = here.mount(manager)
    assert (mountpoint / "model.bin").read_bytes() == CONTENT
    until(lambda: "no keeper" in manager.status(mount_id).condition.reason, "the condition says so")
    assert manager.status(mount_id).condition.state == "degraded"
    assert not path.exists()
    with standing_keeper(path) as process:
        until(lambda: manager.status(mount_id).keeper_pid == process.pid, "the keeper is found")
        until(lambda: manager.status(mount_id).condition.state == "healthy", "it is healthy")
        client = KeeperClient.connect(path)
        until(lambda: client.names() == [mount_id], "the keeper is filled")
        client.close()
        process.kill()
        process.wait()
        until(lambda: manager.status(mount_id).keeper_pid is None, "its death is noticed")
        assert manager.status(mount_id).keeper_restarts.count == 1
    with standing_keeper(path):
        until(lambda: manager.status(mount_id).keeper_pid, "another is found")
        client = KeeperClient.connect(path)
        until(lambda: client.names() == [mount_id], "and filled")
        client.close()
        manager.close(keep=False)


def test_a_standing_keeper_that_comes_a_little_later_is_no_fault(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its pod does at an installation: the log says once that it is awaited, and when it is there. One that stays away is."""
    path = here.box.run / "keeper.sock"
    with capture_logs() as logs:
        manager = here.manager(keeper=path)
        until(lambda: len(told(logs)) == 1, "it is awaited")
        with standing_keeper(path):
            until(lambda: manager.totals().keeper_up, "it is there")
            assert [("info", "keeper_awaited"), ("info", "keeper_found")] == told(logs)
            monkeypatch.setattr("fuse.mounting.keeping.EXTERNAL_LIMIT_S", 0.3)
        until(lambda: ("error", "keeper_not_there") in told(logs), "its absence is a fault")
        assert [("warning", "keeper_gone"), ("info", "keeper_awaited"), ("error", "keeper_not_there")] == told(logs)[2:]
        manager.close(keep=False)


def told(logs: list[EventDict]) -> list[tuple[str, str]]:
    """What was said of the keeper, and how loudly."""
    return [(entry["log_level"], entry["event"]) for entry in logs if entry["event"].startswith("keeper")]


def test_a_start_waits_for_a_standing_keeper_that_may_hold_its_mounts(here: Place) -> None:
    """DaemonSets come up in any order; a mount that lives is not taken for lost meanwhile."""
    path = here.box.run / "keeper.sock"
    starting = threading.Event()
    with standing_keeper(path) as process:
        first = here.manager(keeper=path)
        mount_id, mountpoint = here.mount(first)
        first.close(keep=True)
        process.send_signal(signal.SIGSTOP)
        aside = path.with_name("aside")
        path.rename(aside)
        process.send_signal(signal.SIGCONT)

        def come_late() -> None:
            starting.wait(10)
            aside.rename(path)

        coming = threading.Thread(target=come_late)
        coming.start()
        threading.Timer(0.3, starting.set).start()
        second = here.manager(keeper=path, patient=True)
        coming.join()
        assert [status.id for status in second.statuses()] == [mount_id]
        assert (mountpoint / "model.bin").read_bytes() == CONTENT
        second.close(keep=False)


def test_what_a_late_keeper_holds_is_taken_back(here: Place) -> None:
    """A start that did not wait takes it back when the keeper comes."""
    path = here.box.run / "keeper.sock"
    with standing_keeper(path):
        first = here.manager(keeper=path)
        mount_id, mountpoint = here.mount(first)
        first.close(keep=True)
        aside = path.with_name("aside")
        path.rename(aside)
        second = here.manager(keeper=path)
        assert second.statuses() == []
        aside.rename(path)
        until(lambda: [status.id for status in second.statuses()] == [mount_id], "it is taken back")
        assert (mountpoint / "model.bin").read_bytes() == CONTENT
        second.close(keep=False)


# ---- other versions ----


def test_a_keeper_that_does_not_answer_is_no_keeper(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it is given up at the first answer that does not come, and filled when it goes on: no late answer is taken for
    that to something else."""
    monkeypatch.setattr(keeper_client, "_LIMIT_S", 0.3)
    first = here.manager()
    mount_id, mountpoint = here.mount(first)
    pid = first.status(mount_id).keeper_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        first.release(mount_id, next(iter(first.status(mount_id).grants)))
        until(lambda: not first.totals().keeper_up, "it is given up")
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: first.status(mount_id).keeper_pid == pid, "it is there again")
    until(lambda: first.totals().keeper_up, "it is filled")
    first.close(keep=True)
    second = here.manager()
    assert second.lost() == []
    assert second.status(mount_id).grants == ()
    assert (mountpoint / "model.bin").read_bytes() == CONTENT


def test_a_start_waits_for_a_keeper_that_is_slow(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold what nobody else has; a holder that ended instead would only be started again."""
    first = here.manager()
    mount_id, mountpoint = here.mount(first)
    pid = first.status(mount_id).keeper_pid
    assert pid is not None
    first.close(keep=True)
    monkeypatch.setattr(keeper_client, "_LIMIT_S", 0.3)
    tries: list[Path] = []
    connect = wire.connect

    def counted(path: Path) -> socket.socket:
        tries.append(path)
        if tries.count(path) == 3 and path.name == "holder.keeper":
            os.kill(pid, signal.SIGCONT)
        return connect(path)

    monkeypatch.setattr(wire, "connect", counted)
    os.kill(pid, signal.SIGSTOP)
    try:
        second = here.manager()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert second.status(mount_id).keeper_pid == pid
    assert (mountpoint / "model.bin").read_bytes() == CONTENT


def test_what_a_later_version_kept_is_taken_back(here: Place) -> None:
    """A higher version, more fields and more descriptors are no reason to lose a mount at a rollback."""
    first = here.manager()
    mount_id, mountpoint = here.mount(first)
    first.close(keep=True)
    _rewrite(here, mount_id, {"version": 9, "invented": {"in": "version 9"}, "more": ["invented"]}, more=1)
    second = here.manager()
    assert second.lost() == []
    assert (mountpoint / "model.bin").read_bytes() == CONTENT


def test_what_only_a_later_version_understands_is_left_to_it(here: Place) -> None:
    """It stays with the keeper, and readers wait; the later version takes it back; unmounting lets go of it."""
    first = here.manager()
    mount_id, mountpoint = here.mount(first)
    first.close(keep=True)
    before = _rewrite(here, mount_id, {"version": 9, "needs": 9})
    second = here.manager()
    assert [(lost.mount_id, lost.kept) for lost in second.lost()] == [(mount_id, True)]
    assert second.statuses() == []
    second.close(keep=True)
    _rewrite(here, mount_id, before)
    third = here.manager()
    assert (mountpoint / "model.bin").read_bytes() == CONTENT
    third.close(keep=True)
    _rewrite(here, mount_id, {"version": 9, "needs": 9})
    fourth = here.manager()
    device.unmount(mountpoint, lazy=True)
    fourth.unmount(mount_id)
    client = KeeperClient.connect(here.box.run / "holder.keeper")
    assert client.names() == []
    client.close()


def _rewrite(here: Place, mount_id: str, changes: dict[str, object], *, more: int = 0) -> dict[str, object]:
    """Changes fields of what is kept, as another version would have written it; what they were."""
    client = KeeperClient.connect(here.box.run / "holder.keeper")
    device_fd, state, table, *worker = client.take(mount_id)
    content = json.loads(wire.read_whole(state, 1 << 20))
    before = {name: content.get(name) for name in changes}
    changed = wire.sealed_memfd("changed", json.dumps({**content, **changes}).encode())
    client.keep(mount_id, [device_fd, changed, table, *[table] * more, *worker])
    wire.close_all([device_fd, state, table, changed, *worker])
    client.close()
    return before


def test_what_is_kept_can_be_read_by_the_first_version() -> None:
    """Names and defaults of its fields are for good: this is what version 1 wrote."""
    written = (
        b'{"spec":{"parts":[{"registry":"r","digest":"sha256:0"}],"table":"sha256:1","reference":"r/m@sha256:0"},"init":"",'
        b'"reply":"","mountpoint":"/m","device":"0:9","bytes_total":1,"by_fusermount":false,"uses":{"u":{"reference":"r/m",'
        b'"access":{"registry":"r","endpoints":[]},"prefetch":"none"}},"version":1}'
    )
    kept = msgspec.json.decode(written, type=Kept)
    assert (kept.mountpoint, kept.needs, kept.uses["u"].prefetch) == ("/m", 1, "none")


def test_a_keeper_that_wants_later_clients_is_refused_and_one_of_version_1_is_not(here: Place) -> None:
    """Version 1 has no `needs`, and starts no holders."""
    path = here.box.run / "other.sock"
    for greeting, welcome in (
        ({"version": 1}, True),
        ({"version": 9, "needs": 1}, True),
        ({"version": 9, "needs": 9}, False),
    ):
        with wire.listen(path) as listener:

            def talk(answer: dict[str, object], listening: object = listener) -> None:
                sock, _ = listening.accept()  # type: ignore[attr-defined]
                with sock:
                    sock.recv(1000)
                    sock.send(json.dumps({"ok": True, "pid": 1, **answer}).encode())
                    sock.recv(1000)

            talking = threading.Thread(target=talk, args=(greeting,))
            talking.start()
            if welcome:
                client = KeeperClient.connect(path)
                assert client.version == greeting["version"]
                client.close()
            else:
                with pytest.raises(Unavailable, match="version 9"):
                    KeeperClient.connect(path)
            talking.join(10)
        path.unlink()


# ---- leftovers of a killed holder ----


def test_workers_end_with_their_holder_and_leave_the_mount_to_the_keeper(here: Place) -> None:
    """kill -9 of the holder: no process of its is left but the keeper, which alone holds the device."""
    with holderprocess.start(here.box) as holder:
        worker_pid = holder.worker_pid
        holder.kill()
        until(lambda: not alive(worker_pid), "the worker is gone")
        manager = here.manager()
        assert manager.wait_served(30)
        (status,) = manager.statuses()
        assert (Path(holder.mountpoint) / "model.bin").read_bytes() == CONTENT
        assert status.keeper_pid is not None
        assert _devices(status.keeper_pid) == 1


def _devices(pid: int) -> int:
    """How many descriptors of /dev/fuse a process has."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += str(link.readlink()) == "/dev/fuse"
        except OSError:
            continue
    return found


# ---- the keeper as a supervisor ----


def test_a_keeper_starts_a_successor_five_times_at_once_and_then_waits(here: Place) -> None:
    """It gets its descriptors as 3 and 4, its environment, and no lock of the keeper's; nothing is started for nothing held."""
    path = here.box.run / "reviving.sock"
    log = here.box.root / "started"
    code = (
        "import os\n"
        "links = [f'/proc/self/fd/{number}' for number in range(3, 9)]\n"
        "word = os.pread(3, 100, 0).decode() + os.environ['WORD'] + str([os.readlink(l) for l in links if os.path.lexists(l)])\n"
        f"print(word, file=open({str(log)!r}, 'a'))"
    )
    program = {"argv": [sys.executable, "-I", "-S", "-c", code], "env": {"WORD": " heard "}}
    client = KeeperClient.open(path)
    fds = [wire.sealed_memfd("program", json.dumps(program).encode()), wire.sealed_memfd("order", b"order")]
    assert client.revive(fds)
    with open(os.devnull) as held:
        client.keep("mount", [held.fileno()])
    client.close()
    wire.close_all(fds)
    lines = until(
        lambda: log.exists() and len(log.read_text().splitlines()) >= 6 and log.read_text().splitlines(), "it starts"
    )
    assert lines
    assert set(lines) == {"order heard ['/memfd:order (deleted)']"}
    client = KeeperClient.connect(path)
    client.drop("mount")
    client.close(wait=True)
    assert not path.exists()


@pytest.mark.parametrize(("label", "needs"), [("", 1), ("a:b:c:s0", 3)])
def test_what_has_a_label_is_kept_for_who_knows_of_labels(label: str, needs: int) -> None:
    """An older version would give the mount another name, and take it for an orphan."""
    parts = (Part(registry="r", digest="sha256:0"),)
    spec = MountSpec(parts=parts, table="sha256:1", reference="r/m@sha256:0", label=label)
    mount = Mount(spec=spec, mountpoint=Path("/m"), bytes_total=1, by_fusermount=False)
    (state,) = mount.keepsakes()
    kept = msgspec.json.decode(wire.read_whole(state, 1 << 20), type=Kept)
    device_fd, table_fd = (os.open(os.devnull, os.O_RDONLY) for _ in range(2))
    found = from_kept([device_fd, state, table_fd])
    found.close()
    assert (kept.needs, found.id, found.spec.label) == (needs, mount.id, label)
