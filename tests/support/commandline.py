"""The real `weightless` program in a world of its own, which has to be empty of mounts and processes at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fuse.mounting import device
from fuse.mounting.mountinfo import MountTable

_END_S = 10.0


class World:
    """Cache, run directory and configuration below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.run_dir = root / "run"
        (root / "empty.toml").write_text("")
        (root / "docker").mkdir()
        self.environment = {
            **os.environ,
            "WEIGHTLESS_RUN_DIR": str(self.run_dir),
            "WEIGHTLESS_CONFIG": str(root / "empty.toml"),
            "DOCKER_CONFIG": str(root / "docker"),
            "NO_PROXY": "*",
        }

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "weightless", *map(str, arguments), "--cache-dir", str(self.cache)]

    def run(self, *arguments: object, code: int = 0, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, which must come with exit code `code`."""
        result = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            cwd=self.root,
        )
        assert code == result.returncode, f"{arguments}: {result.stdout}{result.stderr}"
        return result

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root,
        )

    def statuses(self) -> list[dict[str, object]]:
        found = json.loads(self.run("status", "--json").stdout)
        assert isinstance(found, list)
        return found

    def mounts(self) -> list[Path]:
        return [entry.mountpoint for entry in MountTable.read().below(self.root.resolve())]

    def processes(self) -> dict[int, str]:
        """Processes of this world: those that have its run directory in their environment, or its cache as their own."""
        mark = f"WEIGHTLESS_RUN_DIR={self.run_dir}".encode()
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def is_empty_soon(self) -> None:
        """Fails when a mount or a process is left; a process may take a moment to be gone."""
        assert [] == self.mounts()
        poll_until(lambda: not self.processes(), lambda: f"processes are left: {self.processes()}")

    def clean(self) -> None:
        """After a test, however it went: unmounts, kills and says what it found."""
        left, mounts = self.processes(), self.mounts()
        for mount in mounts:
            device.unmount(mount, lazy=True)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert not mounts, f"mounts were left: {mounts}"


def poll_until(condition, explain=lambda: "it did not happen", limit_s=_END_S):
    """Waits until `condition()` is true; fails with `explain()`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)
