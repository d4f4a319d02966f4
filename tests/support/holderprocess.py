"""A holder in a process of its own, so that it can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.leaks import Sandbox


class Holder:
    """A started holder with one mount."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        self.mount_id: str = told["id"]
        self.mountpoint: str = told["mountpoint"]
        self.worker_pid: int = told["worker_pid"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextmanager
def start(box: Sandbox) -> Iterator[Holder]:
    """Mounts `registry.example/m:v1` at `mount` in the sandbox, under the name `holder`."""
    (box.root / "mount").mkdir()
    with subprocess.Popen(
        [sys.executable, __file__, str(box.run), str(box.cache), str(box.root / "mount")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


def main() -> None:
    import msgspec

    from fuse import logs
    from fuse.filesystem.table import View
    from fuse.mounting import fetcher_start
    from fuse.mounting.manager import HolderSettings, MountManager
    from fuse.registry.access import Access
    from tests.support import adminfetcher

    logs.configure("holder", "warning")
    run, cache, mountpoint = map(Path, sys.argv[1:])
    fetcher_start.PROGRAM = adminfetcher.PROGRAM  # type: ignore[misc]  # a test's fetcher in its place
    access = Access(registry="registry.example", endpoints=())
    manager = MountManager(HolderSettings(cache_dir=cache, run_dir=run))
    manager.start()
    artifact = manager.resolve("registry.example/m:v1", access, View())
    mount_id = manager.acquire(artifact, mountpoint, prefetch="none", grant="user", access=access)
    sys.stdout.write(msgspec.json.encode(manager.status(mount_id)).decode() + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    manager.close(keep=False)


if __name__ == "__main__":
    main()
