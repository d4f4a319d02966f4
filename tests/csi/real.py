"""The real data plane behind a plugin: registry on loopback, fetcher, worker, keeper. Also a plugin as a process, to be killed.

`python -m tests.csi.real DIRECTORY STEP` runs a plugin in DIRECTORY that kills itself after STEP ("" for never).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from csi.plugin import NodePlugin
from csi.server import is_served
from fuse import logs
from fuse.mounting.access import AccessReader
from fuse.mounting.manager import HolderSettings, MountManager
from tests.csi.harness import Place
from weightless.demo.pack import pack_model
from weightless.demo.registry import ModelRegistry
from weightless.signals import signals_call

CONFIG = b'{"model_type": "tiny"}'
WEIGHTS = bytes(range(256)) * 20_000
ROOT = Path(__file__).parents[2]


@contextmanager
def model_registry(directory: Path) -> Iterator[str]:
    """Serves a small model; gives its reference."""
    model = directory / "model"
    model.mkdir()
    (model / "config.json").write_bytes(CONFIG)
    (model / "model.safetensors").write_bytes(WEIGHTS)
    with ModelRegistry() as registry:
        pack_model(model).serve(registry, "models/tiny", "v1")
        yield f"{registry.host}/models/tiny:v1"


def access(place: Place) -> AccessReader:
    """Loopback is where the registry of a test is."""
    return AccessReader(local_allowed=True, docker_config=place.root / "docker")


def real_manager(place: Place, **more: Any) -> MountManager:
    """`more`: other fields of `HolderSettings`."""
    run_dir = place.root / "run"
    return MountManager(
        HolderSettings(cache_dir=place.root / "cache", run_dir=run_dir, name="node", log_level="warning", **more)
    )


class PluginProcess:
    """A node plugin as a process of its own. It ends with the test at the latest (`end_processes`)."""

    running: ClassVar[set[PluginProcess]] = set()

    def __init__(self, place: Place, *, die_after: str = "") -> None:
        command = [sys.executable, "-m", "tests.csi.real", str(place.root), die_after]
        self.log = place.root / "plugin.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self.running.add(self)
        deadline = time.monotonic() + 30
        while not is_served(place.socket):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"the plugin did not start:\n{self.log.read_text()}")
            time.sleep(0.02)

    def wait_dead(self) -> int:
        return self._process.wait(30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(40)


def end_processes(place: Place) -> None:
    """After a test, whatever became of it: plugins are killed, and what the keeper holds is taken from it and ended."""
    while PluginProcess.running:
        PluginProcess.running.pop().kill()
    if (place.root / "run").exists():
        manager = real_manager(place)
        manager.start()
        manager.close(keep=False)


def main(directory: str, die_after: str) -> None:
    logs.configure("plugin", "debug")
    place = Place(Path(directory))

    def checkpoint(name: str) -> None:
        if name == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    ended = threading.Event()
    plugin = NodePlugin(place.settings(checkpoint=checkpoint, access=access(place)), real_manager(place))
    with signals_call(ended.set):
        plugin.start()
        ended.wait()
        plugin.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
