"""The processes of a sandbox by what they are, found in /proc: what is to be killed cannot be asked who it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from tests.support.leaks import alive, serves_mount

Kind = Literal["plugin", "worker", "fetcher", "keeper", "holder"]

_MARKS: Final[dict[Kind, Callable[[list[str]], bool]]] = {
    "worker": lambda words: "fuse.worker" in words,
    "fetcher": lambda words: "fuse.fetch" in words,
    "keeper": lambda words: any("keeper" in word for word in words[1:]),
    "holder": lambda words: "weightless.holder" in words,
    "plugin": lambda words: "csi" in words,
}


def find(run_dir: Path, *kinds: Kind) -> dict[Kind, list[int]]:
    """Living processes that have this run directory in their environment. A worker counts once it has a mount."""
    mark = f"WEIGHTLESS_RUN_DIR={run_dir}".encode()
    found: dict[Kind, list[int]] = {kind: [] for kind in kinds}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            if mark not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            kind = next((kind for kind, matches in _MARKS.items() if matches(words)), None)
            pid = int(entry.name)
            if kind in found and alive(pid) and (kind != "worker" or serves_mount(pid)):
                found[kind].append(pid)
    return found


def kill(pids: Iterable[int], how: signal.Signals = signal.SIGKILL) -> None:
    """Sends the signal to all of them, one right after the other; who is gone already is no error."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)
