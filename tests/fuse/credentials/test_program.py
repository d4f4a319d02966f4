"""Programs that give credentials: real ones, that misbehave."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fuse.credentials.program import ProgramFailed, run
from fuse.errors import Cancelled
from tests.conftest import need
from tests.support.provider import PYTHON
from tests.support.waiting import until


def test_what_is_asked_is_in_its_input_and_nowhere_else() -> None:
    """Neither its arguments nor its environment hold it."""
    script = "cat; tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' '\\n' < /proc/$$/cmdline"
    code, answer = run(["sh", "-c", script], b"question\n", limit_s=10, environment={"A": "b", "PATH": "/usr/bin:/bin"})

    assert 0 == code
    assert 1 == answer.count(b"question")
    assert b"A=b" in answer


def test_an_answer_may_be_long_but_not_endless() -> None:
    """A long question is no trouble either: it is read when the program likes."""
    question = b"x" * 300_000
    assert (0, question) == run(["cat"], question, limit_s=10)

    with pytest.raises(ProgramFailed, match="more than 1 MiB"):
        run(["cat", "/dev/zero"], b"", limit_s=10)


def test_what_cannot_be_started_is_told() -> None:
    """In the system's words."""
    with pytest.raises(ProgramFailed, match="cannot be started: No such file"):
        run(["/nowhere/provider"], b"", limit_s=1)


def test_a_child_that_stays_is_neither_waited_for_nor_left(tmp_path: Path) -> None:
    """The answer counts when the program has ended; what it left is killed with its group."""
    pid_file = tmp_path / "pid"
    code, answer = run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; echo answer"], b"", limit_s=30)

    assert (0, b"answer\n") == (code, answer)
    _wait_gone(int(pid_file.read_text()))


def test_the_time_limit_holds_for_the_whole_group(tmp_path: Path) -> None:
    """Whatever it does with its output."""
    pid_file = tmp_path / "pid"
    script = f"exec >&-; sleep 60 & echo $! > {pid_file}; wait"

    with pytest.raises(ProgramFailed, match=r"did not answer within 0\.3 s") as caught:
        run(["sh", "-c", script], b"", limit_s=0.3)

    assert caught.value.temporary
    _wait_gone(int(pid_file.read_text()))


def test_it_can_be_given_up() -> None:
    """By whoever asked."""
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        run(["sleep", "60"], b"", limit_s=30, cancel=cancel)


def test_it_runs_as_whom_it_is_told(tmp_path: Path) -> None:
    """With no group but that user's, none of our descriptors and no terminal's session."""
    need(os.geteuid() == 0, "only root can become somebody else")
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        script = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.getsid(0) == os.getpid());"
        script += f"print(os.path.exists('/proc/self/fd/{ours.fileno()}'))"
        code, answer = run([PYTHON, "-SIc", script], b"", limit_s=10, user=65532)

    assert 0 == code
    assert b"(65532, 65532, 65532) (65532, 65532, 65532) [] True" in answer
    assert b"False" in answer


def _wait_gone(pid: int) -> None:
    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(gone, f"process {pid} is gone")
