"""Where a benchmark runs: a directory of its own, a node plugin with a cold cache, and the processes it can look at."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from fuse.mounting.control import MountStatus, statuses
from fuse.mounting.mountinfo import MountTable
from weightless.demo.plugin import NodePlugin

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


@contextmanager
def workshop() -> Iterator[Path]:
    """A directory that is gone afterwards. Nothing is removed while something is mounted below."""
    directory = Path(tempfile.mkdtemp(prefix="weightless-bench-")).resolve()
    try:
        yield directory
    finally:
        if not MountTable.read().below(directory):
            shutil.rmtree(directory)


@contextmanager
def plugin(directory: Path, name: str) -> Iterator[NodePlugin]:
    """A running node plugin with an empty cache."""
    with ExitStack() as stack:
        own = directory / name
        own.mkdir()
        stack.callback(shutil.rmtree, own / "cache", ignore_errors=True)
        running = NodePlugin(own, cache_dir=own / "cache", arguments=["--plain-http"])
        yield stack.enter_context(running)


@contextmanager
def published(node: NodePlugin, name: str, reference: str, *, prefetch: str) -> Iterator[Path]:
    target = node.publish(name, {"reference": reference, "prefetch": prefetch})
    try:
        yield target
    finally:
        node.unpublish(name)


def mounts(node: NodePlugin) -> list[MountStatus]:
    return statuses(node.run_dir)


def memory_bytes(pid: int, field: str = "RssAnon") -> int:
    """A line of /proc/PID/status: RssAnon is what the process alone costs; VmRSS counts shared libraries as well."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
