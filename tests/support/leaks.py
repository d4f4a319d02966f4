"""A place for a test, and the proof that nothing of it is left: mounts, processes, sockets, files.

Everything that a test starts keeps its files below one `Sandbox`, so what it left behind can be told from what others do on the
same machine at the same time: a process belongs to a sandbox if its command line, environment, working directory or an open
file names it. File systems are never asked about themselves; /proc tells.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import until


class Sandbox:
    """A short-named directory with the folders that the programs under test use."""

    def __init__(self) -> None:
        # Short, since a Unix socket's path has at most 107 bytes; traversable, since workers are not root.
        self.root = Path(tempfile.mkdtemp(prefix="wl-", dir="/tmp"))
        self.root.chmod(0o755)
        self.cache = self.root / "cache"
        self.run = self.root / "run"
        self.temporary = self.root / "tmp"
        self.docker = self.root / "docker"
        for directory in (self.run, self.temporary, self.docker):
            directory.mkdir(mode=0o700)

    @property
    def environment(self) -> dict[str, str]:
        """For the programs under test: nothing of this machine's configuration, and no proxies."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.root),
            "TMPDIR": str(self.temporary),
            "WEIGHTLESS_RUN_DIR": str(self.run),
            "DOCKER_CONFIG": str(self.docker),
            "COLUMNS": "200",
        }

    def directory(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        return path

    # ---- what is there ----

    def mounts(self) -> list[str]:
        """Mount points below the sandbox."""
        found: list[str] = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split()[4].encode().decode("unicode_escape")
            if Path(point).is_relative_to(self.root):
                found.append(point)
        return found

    def processes(self) -> dict[int, str]:
        """Living processes of this sandbox other than our own, with their command lines."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if _alive(entry) and self._names_us(entry):
                        found[int(entry.name)] = _command(entry)
        return found

    def sockets(self) -> list[str]:
        return [str(path) for path in self._walk() if stat.S_ISSOCK(path.lstat().st_mode)]

    def left_behind(self) -> list[str]:
        """What should not be there when everything has been unmounted and stopped; empty when all is well.

        The cache may stay, but without sockets. Directories that the test made may stay, if they are empty.
        """
        found = [f"mount {point}" for point in self.mounts()]
        found += [f"process {pid}: {command}" for pid, command in self.processes().items()]
        if not found:
            # Only now is it safe to look at files: a dead mount would hang us.
            found += [f"socket {path}" for path in self.sockets()]
            for directory in (self.run, self.temporary):
                found += [f"file {path}" for path in directory.rglob("*") if not path.name.endswith(".lock")]
        return found

    def clear(self) -> None:
        """Ends whatever is left, so that one failing test does not make others fail."""
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    # ---- how it is seen ----

    def _names_us(self, process: Path) -> bool:
        name = str(self.root).encode()
        if name in (process / "cmdline").read_bytes() or name in (process / "environ").read_bytes():
            return True
        links = [process / "cwd", *(process / "fd").iterdir()]
        return any(_target(link).startswith(str(self.root) + "/") for link in links)

    def _walk(self) -> Iterator[Path]:
        for directory, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                yield Path(directory, name)


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A sandbox that must be clean at the end of the block; an error inside goes before this check."""
    place = Sandbox()
    try:
        yield place
        remaining: list[str] = []

        def clean() -> bool:
            remaining[:] = place.left_behind()
            return not remaining

        try:
            until(clean, "nothing left behind", within_s=5.0)
        except AssertionError:
            raise AssertionError("left behind:\n" + "\n".join(remaining)) from None
    finally:
        place.clear()


def serves_mount(pid: int) -> bool:
    """Whether the process has the FUSE device of a mount: a worker that was started ahead of need has none."""
    with suppress(OSError):
        return any(_target(link).startswith("/dev/fuse") for link in Path("/proc", str(pid), "fd").iterdir())
    return False


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return _alive(Path("/proc", str(pid)))
    except OSError:
        return False


def _alive(process: Path) -> bool:
    # The state follows the program's name, which may hold spaces and parentheses.
    return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def _command(process: Path) -> str:
    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
