"""The keeper as a process: it holds descriptors for those who may have them, and lives exactly as long as it is needed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fuse import keeper, wire
from fuse.errors import Unavailable
from fuse.mounting import process
from fuse.mounting.keeper_client import KeeperClient
from tests.conftest import need
from tests.support.leaks import alive
from tests.support.waiting import until


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a keeper may live; whichever does is killed at the end."""
    # Not below pytest's own directory: another user has to get there too.
    directory = Path(tempfile.mkdtemp(prefix="wl-"))
    directory.chmod(0o755)
    path = directory / "holder.keeper"
    yield path
    left = KeeperClient.find(path)
    if left is not None:
        os.kill(left.pid, signal.SIGKILL)
        left.close(wait=True)
    shutil.rmtree(directory)


def test_gives_back_the_same_open_files_after_its_client_is_gone(path: Path, tmp_path: Path) -> None:
    """What one client gave, the next one gets: the open file itself, with its offset."""
    client = KeeperClient.open(path)
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"content")
        file.flush()
        client.keep("mount", [file.fileno(), file.fileno()])
    client.close()
    client = KeeperClient.open(path)
    assert client.names() == ["mount"]
    fds = client.take("mount")
    assert len(fds) == 2
    assert os.lseek(fds[0], 0, os.SEEK_CUR) == 7
    wire.close_all(fds)
    client.drop("mount")
    assert client.names() == []
    client.close(wait=True)


def test_keeping_again_replaces(path: Path, tmp_path: Path) -> None:
    """The newest descriptors count, and the old ones are closed."""
    client = KeeperClient.open(path)
    readers = []
    for _ in range(2):
        reader, writer = os.pipe()
        readers.append(reader)
        client.keep("mount", [writer])
        os.close(writer)
    assert os.read(readers[0], 1) == b""  # its writer is closed everywhere
    os.set_blocking(readers[1], False)
    with pytest.raises(BlockingIOError):
        os.read(readers[1], 1)
    wire.close_all(readers)
    client.drop("mount")
    client.close(wait=True)


def test_ends_when_it_holds_nothing_for_nobody(path: Path) -> None:
    """It neither lingers nor leaves its socket."""
    client = KeeperClient.open(path)
    pid = client.pid
    client.close(wait=True)
    assert not alive(pid)
    assert list(path.parent.iterdir()) == []


def test_stays_while_it_holds_something(path: Path) -> None:
    """Without any client, what is held stays held."""
    client = KeeperClient.open(path)
    reader, writer = os.pipe()
    client.keep("mount", [writer])
    os.close(writer)
    pid = client.pid
    client.close()
    again = KeeperClient.open(path)
    assert again.pid == pid
    again.drop("mount")
    assert os.read(reader, 1) == b""
    os.close(reader)
    again.close(wait=True)


def test_a_dead_keepers_socket_is_replaced(path: Path) -> None:
    """A keeper that was killed is no obstacle to the next one."""
    first = KeeperClient.open(path)
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        until(lambda: not first.names(), "the killed keeper is gone")
    first.close()
    second = KeeperClient.open(path)
    assert second.pid != first.pid
    second.close(wait=True)


def test_a_second_keeper_at_the_same_path_gives_up(path: Path) -> None:
    """Started by hand on a live socket, it says so and ends."""
    client = KeeperClient.open(path)
    result = subprocess.run(
        [sys.executable, "-m", "fuse.keeper", str(path)], capture_output=True, check=False, timeout=20
    )
    assert result.returncode == 1
    assert b"lives there already" in result.stderr
    assert client.names() == []
    client.close(wait=True)


def test_started_by_hand_it_listens_by_itself(path: Path) -> None:
    """A DaemonSet starts it with nothing but the path."""
    with subprocess.Popen([sys.executable, "-m", "fuse.keeper", str(path)]) as started:
        client = until(lambda: KeeperClient.find(path), "the keeper listens")
        assert client.pid == started.pid
        client.close()
        assert started.wait(10) == 0


def test_only_its_own_user_and_root_may_speak(path: Path) -> None:
    """Another user's connection is closed unheard, even where the socket's mode lets it in."""
    need(os.geteuid() == 0, "becoming another user needs root")
    client = KeeperClient.open(path)
    path.chmod(0o666)
    code = (
        "import os, socket, sys\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"s.connect({str(path)!r})\n"
        "try:\n"
        '    s.send(b\'{"op": "list"}\')\n'
        "    sys.exit(len(s.recv(1000)))\n"
        "except OSError:\n"
        "    sys.exit(0)\n"
    )
    assert subprocess.run(["/usr/bin/python3", "-c", code], check=False, timeout=20).returncode == 0
    assert client.names() == []
    client.close(wait=True)


@pytest.mark.parametrize(
    "packet",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"op": 1}',
        b'{"op": "burn"}',
        b'{"op": "keep", "name": "nothing"}',
        b'{"op": "keep", "name": 5}',
        b'{"op": "take", "name": "unknown"}',
        b'{"op": "drop", "name": "' + b"x" * 65 + b'"}',
    ],
)
def test_nonsense_is_refused_and_does_no_harm(path: Path, packet: bytes) -> None:
    """Whatever arrives, there is an answer, and the keeper goes on."""
    client = KeeperClient.open(path)
    with wire.connect(path) as sock:
        sock.send(packet)
        assert json.loads(sock.recv(1000))["ok"] is False
    assert client.names() == []
    client.close(wait=True)


def test_a_client_that_reads_no_answers_stops_nobody(path: Path) -> None:
    """Its answers pile up until it is dropped; others are served all the while."""
    client = KeeperClient.open(path)
    with wire.connect(path) as deaf:
        deaf.setblocking(False)
        with suppress(BlockingIOError, BrokenPipeError):  # while it is slow, once it is dropped
            while True:
                deaf.send(b'{"op": "hello"}')
        assert client.names() == []
    client.close(wait=True)


@pytest.mark.parametrize("call", ["fcntl.fcntl", "os.pidfd_open"])
def test_a_successor_is_tried_again_where_no_descriptor_can_be_had(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper holds what nobody else has, so it must not die of having no room for one more."""
    spawn, started = os.posix_spawn, []
    monkeypatch.setattr(
        os, "posix_spawn", lambda *given, **named: started.append(spawn(*given, **named)) or started[-1]
    )
    program = tmp_path / "program"
    program.write_text(json.dumps({"argv": [shutil.which("true")], "env": {}}))
    serving = keeper.Keeper(wire.listen(tmp_path / "socket"))
    serving._held["mount"] = []
    serving._revival = revival = keeper.Revival([os.open(program, os.O_RDONLY), os.open(program, os.O_RDONLY)])
    revival.due = 0.0
    with monkeypatch.context() as full:
        full.setattr(f"fuse.keeper.{call}", _no_room)
        serving._revive()
    assert revival.due is not None
    revival.replaces(revival)
    serving._selector.close()
    serving._listener.close()
    assert len(started) == (call == "os.pidfd_open")
    for pid in started:
        os.waitpid(pid, 0)


def _no_room(*_: object) -> int:
    raise OSError(errno.EMFILE, "as the test says")


def test_is_small_and_alone(path: Path) -> None:
    """Less than 15 MB in all, a session of its own, none of our descriptors, no environment to speak of."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    client = KeeperClient.open(path)
    status = Path(f"/proc/{client.pid}/status").read_text()
    resident_kb = int(status.split("VmRSS:")[1].split()[0])
    links = {str(Path(f"/proc/{client.pid}/fd/{fd}").readlink()) for fd in os.listdir(f"/proc/{client.pid}/fd")}
    assert resident_kb < 15 * 1024
    assert os.getsid(client.pid) == client.pid
    assert str(Path(f"/proc/{client.pid}/cwd").readlink()) == "/"
    assert str(Path(f"/proc/self/fd/{writer}").readlink()) not in links
    wire.close_all([reader, writer])
    client.close(wait=True)


def test_imports_nothing_but_the_standard_library() -> None:
    """It must never need an upgrade because something else did."""
    code = f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_path({str(keeper.__file__)!r})"
    code += "; sys.exit(bool({'fuse', 'msgspec', 'structlog'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False, timeout=20).returncode == 0


def test_waiting_for_a_pid_that_is_gone_returns_at_once() -> None:
    """The end of a process that nobody knows any more has come."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as child:
        child.wait()
    assert process.wait_for_pid(child.pid, 5)


def test_a_client_survives_a_socket_that_never_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that is stopped costs the time limit, and is named."""
    client = KeeperClient.open(path)
    os.kill(client.pid, signal.SIGSTOP)
    try:
        client._sock.settimeout(0.1)
        with pytest.raises(Unavailable, match="does not answer"):
            client.names()
    finally:
        os.kill(client.pid, signal.SIGCONT)
    client.close(wait=True)
