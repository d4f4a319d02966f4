"""The control socket: what commands learn and do through it, and what happens when holders are odd."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse import wire
from fuse.errors import Conflict, NotFound
from fuse.mounting import control
from fuse.mounting.control import ControlServer
from fuse.mounting.status import MountStatus
from tests.conftest import need


class Mounts:
    """A manager that remembers; `busy` refuses to unmount."""

    def __init__(self, *paths: str) -> None:
        self.paths = list(paths)
        self.busy = False
        self.lazy: list[bool] = []

    def statuses(self) -> list[MountStatus]:
        return [
            MountStatus(
                id=f"id{path}",
                mountpoint=path,
                reference="r",
                digest="d",
                worker_pid=1,
                keeper_pid=None,
                fetcher_pid=2,
                holder_pid=os.getpid(),
                bytes_cached=1,
                bytes_total=2,
                targets=(f"/pods/{'x' * 200}",) * 20,
            )
            for path in self.paths
        ]

    def find(self, mountpoint: Path) -> str | None:
        return f"id{mountpoint}" if str(mountpoint) in self.paths else None

    def unmount(self, mount_id: str, *, lazy: bool = False) -> None:
        if self.busy and not lazy:
            raise Conflict("the mount is in use", where=mount_id)
        self.lazy.append(lazy)
        self.paths.remove(mount_id.removeprefix("id"))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl-") as directory:
        yield Path(directory).resolve()


def test_commands_see_the_mounts_of_all_holders(run_dir: Path) -> None:
    """Also more, and of more pods, than fit into one message; sockets of the dead and other files are passed over."""
    servers = [ControlServer(Mounts(*(f"/m/{name}{number}" for number in range(100))), run_dir, name) for name in "ab"]
    wire.listen(run_dir / "dead.sock").close()
    (run_dir / "file.log").touch()
    assert [holder.name for holder in control.holders(run_dir)] == ["a", "b", "dead"]
    assert len(control.statuses(run_dir)) == 200
    for server in servers:
        server.close()
    assert not (run_dir / "a.sock").exists()
    assert control.statuses(run_dir / "missing") == []


def test_a_command_unmounts_by_path(run_dir: Path) -> None:
    """What is mounted there is unmounted, by its holder; nothing there is not found, busy is refused."""
    mounts = Mounts(f"{run_dir}/one", f"{run_dir}/two")
    server = ControlServer(mounts, run_dir, "holder")
    mounts.busy = True
    with pytest.raises(Conflict, match="in use"):
        control.unmount(run_dir, run_dir / "one")
    control.unmount(run_dir, run_dir / "one", lazy=True)
    mounts.busy = False
    control.unmount(run_dir, run_dir / "two")
    assert mounts.lazy == [True, False]
    with pytest.raises(NotFound):
        control.unmount(run_dir, run_dir / "two")
    server.close()


def test_a_holder_without_mounts_is_told_to_end_and_waited_for(run_dir: Path) -> None:
    """The command returns when the holder's process is gone."""
    code = (
        "import sys, threading; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from fuse.mounting.control import ControlServer\n"
        "from tests.fuse.mounting.test_control import Mounts\n"
        "idle = threading.Event(); run = Path(sys.argv[1])\n"
        "server = ControlServer(Mounts(f'{run}/one'), run, 'holder', on_idle=idle.set)\n"
        "print(flush=True); idle.wait(); server.close()\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen([sys.executable, "-c", code, str(run_dir), root], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        reaper = threading.Thread(target=holder.wait)
        reaper.start()
        control.unmount(run_dir, run_dir / "one")
        reaper.join(1)
        assert holder.returncode == 0
    assert list(run_dir.iterdir()) == []


def test_a_silent_or_garbled_client_stops_nobody(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after a while; the next one is served."""
    monkeypatch.setattr(control, "_REQUEST_LIMIT_S", 0.1)
    server = ControlServer(Mounts("/m"), run_dir, "holder")
    with wire.connect(server.path) as silent, wire.connect(server.path) as garbled:
        garbled.send(b"garbage")
        assert len(control.statuses(run_dir)) == 1
        assert silent.recv(10) == b""
        assert garbled.recv(10) == b""
    server.close()


def test_only_its_own_user_and_root_may_ask(run_dir: Path) -> None:
    """Another user hears nothing."""
    need(os.geteuid() == 0, "becoming another user needs root")
    server = ControlServer(Mounts("/m"), run_dir, "holder")
    run_dir.chmod(0o755)
    server.path.chmod(0o666)
    code = (
        "import os, socket, sys; os.setresuid(65534, 65534, 65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
        'try:\n    s.send(b\'{"op": "status"}\'); sys.exit(len(s.recv(1000)))\n'
        "except OSError:\n    sys.exit(0)\n"
    )
    heard = subprocess.run(["/usr/bin/python3", "-c", code, str(server.path)], check=False, timeout=20)
    assert heard.returncode == 0
    server.close()


def test_a_left_over_socket_is_replaced(run_dir: Path) -> None:
    """A holder that was killed leaves one; its name is free, since its lock is."""
    wire.listen(run_dir / "holder.sock").close()
    server = ControlServer(Mounts("/m"), run_dir, "holder")
    assert len(control.statuses(run_dir)) == 1
    server.close()
