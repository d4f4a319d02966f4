"""Backoff, run directory, child processes and the watch thread."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.errors import Conflict, InvalidConfig
from fuse.mounting import process, rundir
from fuse.mounting.absence import Absence
from fuse.mounting.backoff import Backoff
from fuse.mounting.watch import HUNG_UP, READABLE, Watch
from tests.support.holders import zombies
from tests.support.waiting import until

# ---- backoff ----


def test_five_replacements_come_at_once_then_pauses_grow_to_five_seconds() -> None:
    """A worker that keeps dying is replaced for ever, but ever more slowly."""
    backoff = Backoff()
    pauses = [backoff.died(now) for now in range(40)]
    assert pauses[:5] == [0.0] * 5
    assert pauses[5:9] == [0.1, 0.2, 0.4, 0.8]
    assert pauses == sorted(pauses)
    assert max(pauses) == 5.0


def test_a_keeper_is_awaited_before_it_is_missed() -> None:
    """Once each, and again after ever longer times."""
    absence = Absence(100.0, grace_s=30.0)
    told = [(now, news) for now in range(100, 500) if (news := absence.news(now))]
    assert [(100, "awaited"), (130, "missing"), (160, "missing"), (220, "missing"), (340, "missing")] == told
    assert 5.0 == absence.length_s(105.0)


def test_a_keeper_that_should_be_there_is_missed_at_once() -> None:
    """And not told of at every look."""
    absence = Absence(100.0, grace_s=0.0)
    assert ["missing", 130] == [absence.news(100.0), next(now for now in range(101, 200) if absence.news(now))]


def test_ten_seconds_of_service_start_the_backoff_over() -> None:
    """One that served well and dies is replaced at once, one that served briefly is not."""
    backoff = Backoff()
    for _ in range(8):
        backoff.died(0.0)
    backoff.started(100.0)
    assert backoff.died(109.9) > 0
    backoff.started(200.0)
    assert backoff.died(210.0) == 0


# ---- run directory ----


def test_the_run_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, else root's, else the session's, else one in /tmp."""
    monkeypatch.setenv(rundir.VARIABLE, "/somewhere")
    assert rundir.run_dir() == Path("/somewhere")
    monkeypatch.delenv(rundir.VARIABLE)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert rundir.run_dir() == Path("/run/weightless")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert rundir.run_dir() == Path("/run/user/1234/weightless")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert rundir.run_dir() == Path("/tmp/weightless-1234")


def test_a_run_directory_is_made_private(tmp_path: Path) -> None:
    """Others may not enter it, also when it was there with another mode."""
    made = rundir.ensure(tmp_path / "a" / "run")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    rundir.ensure(made)
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_run_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Whoever owns it could answer in our place; a link is no directory."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidConfig, match="not a directory of this user's"):
        rundir.ensure(tmp_path / "link")
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 1, 1)
        with pytest.raises(InvalidConfig, match="not a directory of this user's"):
            rundir.ensure(tmp_path / "theirs")


def test_a_lock_has_one_owner_and_leaves_no_file(tmp_path: Path) -> None:
    """The second is told who is in the way; afterwards the file is gone."""
    path = tmp_path / "x.lock"
    fd = rundir.lock(path, "the plugin")
    with pytest.raises(Conflict, match="the plugin runs already"):
        rundir.lock(path, "the plugin")
    rundir.unlock(path, fd)
    assert not path.exists()
    rundir.unlock(path, rundir.lock(path, "the plugin"))


# ---- processes ----


def _spawn(code: str) -> process.Child:
    with open(os.devnull, "w") as null:
        return process.spawn([sys.executable, "-I", "-S", "-c", code], stderr=null.fileno())


def test_children_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of their own, nothing on their streams, none of our descriptors and none of our secrets."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    child = _spawn("import time; time.sleep(60)")
    links = {str(Path(f"/proc/{child.pid}/fd/{fd}").readlink()) for fd in os.listdir(f"/proc/{child.pid}/fd")}
    assert links == {"/dev/null"}
    assert os.getsid(child.pid) == child.pid
    assert str(Path(f"/proc/{child.pid}/cwd").readlink()) == "/"
    assert b"s3cr3t" not in Path(f"/proc/{child.pid}/environ").read_bytes()
    child.end(within_s=0)
    assert child.fate == "was killed by signal 9"
    os.close(reader)
    os.close(writer)


def test_waiting_has_a_limit_and_reaps() -> None:
    """A wait that is over says so; after the end there is no zombie, whoever waited."""
    child = _spawn("import time; time.sleep(60)")
    assert not child.wait(0.01)
    waiters = [threading.Thread(target=child.wait) for _ in range(4)]
    for waiter in waiters:
        waiter.start()
    os.kill(child.pid, signal.SIGTERM)
    for waiter in waiters:
        waiter.join(10)
    assert child.wait(0)
    assert child.fate == "was killed by signal 15"
    assert child.pid not in zombies()


def test_a_child_that_is_left_alone_is_reaped_when_it_ends() -> None:
    """Nobody waits for it, and yet no zombie stays."""
    child = _spawn("")
    child.reap_later()
    until(lambda: child.fate == "ended with status 0", "the child is reaped")


# ---- watch ----


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    yield made
    made.close()


def test_a_hang_up_is_told_apart_from_messages(watch: Watch) -> None:
    """Who waits for the end only is not called for what is said before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended = threading.Event()

    def callback() -> None:
        watch.remove(ours.fileno())
        ended.set()

    watch.add(ours.fileno(), HUNG_UP, callback)
    theirs.send(b"message")
    assert not ended.wait(0.05)
    theirs.close()
    assert ended.wait(5)
    ours.close()


def test_a_callback_that_fails_does_not_blind_the_watch(watch: Watch) -> None:
    """The others are still called."""
    sockets = [socket.socketpair() for _ in range(2)]
    heard = threading.Event()

    def fail() -> None:
        raise RuntimeError("broken")

    def hear() -> None:
        watch.remove(sockets[1][0].fileno())
        heard.set()

    watch.add(sockets[0][0].fileno(), READABLE, fail)
    watch.add(sockets[1][0].fileno(), READABLE, hear)
    sockets[0][1].send(b"x")
    sockets[1][1].send(b"x")
    assert heard.wait(5)
    for pair in sockets:
        for sock in pair:
            sock.close()


def test_an_idle_watch_uses_no_processor(watch: Watch) -> None:
    """It sleeps in the kernel: no wake-up, no polling."""
    ours, theirs = socket.socketpair()
    watch.add(ours.fileno(), HUNG_UP, lambda: None)
    theirs.send(b"x")
    before = time.thread_time(), time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before[1] < 0.05
    watch.remove(ours.fileno())
    ours.close()
    theirs.close()
