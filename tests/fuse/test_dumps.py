"""A process whose memory is nobody else's: seen from a process of the same user, without a privilege."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fuse import dumps
from tests.conftest import need_program
from weightless.commands import csi

_BARE = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")


def _is_readable(first: str) -> bool:
    """Whether somebody else may read the memory (and so the environment) of a process that has done this."""
    need_program("setpriv", "util-linux")
    script = f"{first}\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [*_BARE, sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = subprocess.run(
            [*_BARE, "cat", f"/proc/{process.pid}/environ"], capture_output=True, check=False, timeout=10
        )
        process.communicate(b"\n", timeout=10)
    return seen.returncode == 0


def test_memory_is_shown_to_nobody() -> None:
    """What the kernel dumps on no signal, it lets nobody trace."""
    assert _is_readable("pass")
    assert not _is_readable("from fuse import dumps; dumps.forbid()")


def test_the_plugin_and_the_controller_begin_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they know anything that is worth hiding."""

    def forbid() -> None:
        raise InterruptedError("it begins with this")

    monkeypatch.setattr(dumps, "forbid", forbid)
    for mode in ("node", "controller", "all"):
        with pytest.raises(InterruptedError):
            csi.run(None, mode=mode, **dict.fromkeys(_OPTIONS))  # type: ignore[arg-type]


_OPTIONS = (
    *("endpoint", "node_id", "kubelet_dir", "state_dir", "metrics_address"),
    *("keeper", "max_volumes", "without_resend", "native_given"),
)
