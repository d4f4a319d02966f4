"""Where a benchmark runs: a directory of its own, a node plugin with a cold cache, and what can be seen of its processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import synthetic
from fuse.mounting.control import MountStatus, statuses
from fuse.mounting.mountinfo import MountTable
from weightless.demo.plugin import NodePlugin
from weightless.demo.registry import ModelRegistry

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_VERIFY_S: Final = 120.0
_LOOK_S: Final = 0.05


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
def plugin(directory: Path, name: str, arguments: Sequence[str] = ("--plain-http",)) -> Iterator[NodePlugin]:
    """A running node plugin with an empty cache."""
    with ExitStack() as stack:
        own = directory / name
        own.mkdir()
        stack.callback(shutil.rmtree, own / "cache", ignore_errors=True)
        running = NodePlugin(own, cache_dir=own / "cache", arguments=arguments)
        yield stack.enter_context(running)


@contextmanager
def published(node: NodePlugin, name: str, reference: str, *, prefetch: str) -> Iterator[Path]:
    try:
        yield node.publish(name, {"reference": reference, "prefetch": prefetch})
    finally:
        # Also of a publish that Ctrl-C took us out of: the plugin goes on with it.
        node.unpublish(name)


def mount_something(node: NodePlugin) -> None:
    """Makes `node` one that has mounted before, so that its fetcher runs; its cache stays as good as empty."""
    with ModelRegistry() as registry:
        model = synthetic.serve(registry, "bench/other", 1000, shards=1)
        with published(node, "other", f"{registry.host}/{model.repository}:v1", prefetch="none"):
            pass


def mounts(node: NodePlugin) -> list[MountStatus]:
    return statuses(node.run_dir)


def wait_verified(node: NodePlugin, *, copies: int = 0) -> None:
    """Until every blob of the cache is there and matches its digest, and so many copies of members of archives are made: then the
    driver has nothing left to do."""
    command = [sys.executable, "-m", "weightless", "cache", "ls", "--json", "--cache-dir", str(node.cache_dir)]
    deadline = time.monotonic() + _VERIFY_S
    while True:
        listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        if all(blob["verified"] for blob in listed) and sum(blob["copy"] for blob in listed) >= copies:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not verified and copied after {_VERIFY_S:g} s: {listed}")
        time.sleep(_LOOK_S)


# ---- the processes ----


def pids(node: NodePlugin) -> set[int]:
    """Of all that the driver runs: the plugin itself, workers, fetcher and keeper."""
    held = mounts(node)
    others = {pid for mount in held for pid in (mount.worker_pid, mount.keeper_pid, mount.fetcher_pid) if pid}
    return {node.pid, *others}


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


@contextmanager
def peaks(watched: Iterable[int]) -> Iterator[dict[int, int]]:
    """The most memory (RssAnon) of each process during the block."""
    found = dict.fromkeys(watched, 0)
    over = threading.Event()

    def look() -> None:
        while True:
            for pid, most in found.items():
                with suppress(OSError):
                    found[pid] = max(most, memory_bytes(pid))
            if over.wait(_LOOK_S):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


# ---- other programs, and the page cache ----


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    cpu_s: float
    """User and system time of the program."""


def run(*commands: Sequence[str]) -> Run:
    """Runs programs one after the other; what they print is of no interest."""
    before = os.times()
    begun = time.monotonic()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return Run(
        time.monotonic() - begun,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def dd(*paths: Path) -> Run:
    """Reads files from their beginning to their end."""
    return run(*(["dd", f"if={path}", f"of={os.devnull}", "bs=1M"] for path in paths))


def forget(paths: Iterable[Path]) -> None:
    """Empties the page cache of these files alone: others work on this machine."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # dirty pages would stay
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def forget_cache(node: NodePlugin) -> None:
    """The same for all that the cache of `node` holds."""
    forget(path for path in node.cache_dir.rglob("*") if path.is_file() and path.stat().st_size)
