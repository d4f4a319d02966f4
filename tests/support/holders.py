"""A `MountManager` in the test's process, with a fetcher made for tests, and the proof that it leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fuse.filesystem.table import View
from fuse.mounting import fetcher_start
from fuse.mounting.manager import HolderSettings, MountManager, MountStatus
from fuse.registry.access import Access
from fuse.spec import Verify
from tests.support import adminfetcher
from tests.support.leaks import Sandbox, sandbox
from tests.support.waiting import until

ACCESS = Access(registry="registry.example", endpoints=())


class Place:
    """Makes managers in a sandbox and closes those that the test did not."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.managers: list[MountManager] = []
        self.gone: list[MountStatus] = []

    def manager(
        self,
        name: str = "holder",
        *,
        use_keeper: bool = True,
        start_limit_s: float = 30.0,
        patient: bool = False,
        **more: Any,
    ) -> MountManager:
        """`more`: other fields of `HolderSettings`."""
        settings = HolderSettings(
            cache_dir=self.box.cache,
            run_dir=self.box.run,
            name=name,
            use_keeper=use_keeper,
            log_level="warning",
            start_limit_s=start_limit_s,
            **more,
        )
        manager = MountManager(settings, on_gone=self.gone.append)
        manager.start(patient=patient)
        self.managers.append(manager)
        return manager

    def requests(self, operation: str) -> list[list[str]]:
        """What the fetcher was asked, since the first one started."""
        lines = (self.box.cache / "requests.log").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry[0] == operation]

    def mount(
        self,
        manager: MountManager,
        directory: str = "mount",
        *,
        reference: str = "registry.example/m:v1",
        grant: str = "user",
        verify: Verify = "lazy",
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> tuple[str, Path]:
        path = self.box.root / directory
        path.mkdir(exist_ok=True)
        artifact = manager.resolve(reference, ACCESS, View())
        mount_id = manager.acquire(
            artifact, path, prefetch="none", grant=grant, access=ACCESS, verify=verify, checkpoint=checkpoint
        )
        return mount_id, path


@contextmanager
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(fetcher_start, "PROGRAM", adminfetcher.PROGRAM)
    before = descriptors()
    with sandbox() as box:
        # By this the sandbox knows its workers.
        monkeypatch.setenv("WEIGHTLESS_RUN_DIR", str(box.run))
        made = Place(box)
        try:
            yield made
        finally:
            for manager in made.managers:
                manager.close(keep=False)
    until(lambda: descriptors() <= before, f"no descriptor leaked: {before} before", within_s=5)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def zombies() -> list[int]:
    """Children of this process that have ended and were not waited for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state == "Z" and int(parent) == os.getpid():
                found.append(int(entry.name))
    return found


def no_zombie_is_left() -> None:
    """Whoever waits for the end of a process sees it a moment before the thread has reaped it that is there for that."""
    until(lambda: zombies() == [], "every child to be reaped")
