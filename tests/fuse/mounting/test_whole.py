"""All of it together: a registry, the real fetcher, real workers, a real keeper and a real mount."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.credentials.ladder import Ladder
from fuse.errors import InvalidReference, NotFound, WeightlessError
from fuse.filesystem.table import View
from fuse.mounting.access import AccessReader
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.manager import HolderSettings, MountManager
from tests.support.holders import descriptors, no_zombie_is_left
from tests.support.leaks import Sandbox, alive, sandbox
from tests.support.waiting import until
from weightless.demo.pack import pack_model
from weightless.demo.registry import ModelRegistry

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]
WEIGHTS = random.Random(1).randbytes(40 * 1024 * 1024 + 77)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with sandbox() as made:
        monkeypatch.setenv("WEIGHTLESS_RUN_DIR", str(made.run))
        yield made


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[ModelRegistry]:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "weights.safetensors").write_bytes(WEIGHTS)
    (model / "config.json").write_text("{}")
    (model / "sub" / "README.md").write_text("words")
    with ModelRegistry(rate_bytes_per_s=200e6) as made:
        pack_model(model).serve(made, "models/tiny", "v1")
        yield made


@pytest.fixture
def manager(box: Sandbox) -> Iterator[MountManager]:
    before = descriptors()
    made = MountManager(HolderSettings(cache_dir=box.cache, run_dir=box.run, log_level="warning"))
    made.start()
    yield made
    made.close(keep=False)
    until(lambda: descriptors() <= before, "no descriptor leaked", within_s=5)


READER = AccessReader(local_allowed=True, credentials=Ladder(allow=("anonymous",)))


def _mount(manager: MountManager, box: Sandbox, reference: str, *, prefetch: str = "none", grant: str = "user") -> Path:
    access = READER.access(reference)
    artifact = manager.resolve(reference, access, View())
    path = box.directory(artifact.identity)
    manager.acquire(artifact, path, prefetch=prefetch, grant=grant, access=access)  # type: ignore[arg-type]
    return path


def test_a_model_is_read_through_every_process(box: Sandbox, registry: ModelRegistry, manager: MountManager) -> None:
    """What is read is right, and without prefetching only that is fetched."""
    path = _mount(manager, box, f"{registry.host}/models/tiny:v1")
    assert sorted(os.listdir(path)) == ["config.json", "sub", "weights.safetensors"]
    assert (path / "config.json").read_text() == "{}"
    status = manager.statuses()[0]
    assert status.bytes_cached < status.bytes_total / 2
    assert (path / "weights.safetensors").read_bytes() == WEIGHTS
    status = manager.statuses()[0]
    assert status.bytes_fetched >= len(WEIGHTS)
    assert status.condition.state == "healthy"


def test_with_prefetch_the_whole_arrives_by_itself(
    box: Sandbox, registry: ModelRegistry, manager: MountManager
) -> None:
    """Nobody reads, and all is in the cache."""
    _mount(manager, box, f"{registry.host}/models/tiny:v1", prefetch="full")
    until(lambda: (s := manager.statuses()[0]).bytes_cached == s.bytes_total, "all of it is cached")


@pytest.mark.parametrize("victims", [("worker",), ("fetcher",), ("worker", "fetcher", "keeper")])
def test_reads_survive_any_death(
    box: Sandbox, registry: ModelRegistry, manager: MountManager, victims: tuple[str, ...]
) -> None:
    """A reader that is in the middle of a file ends with the right sum."""
    registry.rate.bytes_per_s = 30e6  # so that the deaths come in the middle of transfers
    path = _mount(manager, box, f"{registry.host}/models/tiny:v1", prefetch="full")
    code = (
        f"import hashlib; f = open('{path}/weights.safetensors', 'rb', buffering=0); h = hashlib.sha256(f.read(5000000))\n"
        "print(flush=True)\nwhile b := f.read(1 << 20): h.update(b)\nprint(h.hexdigest())"
    )
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        status = manager.statuses()[0]
        for victim in victims:
            os.kill(getattr(status, f"{victim}_pid"), signal.SIGKILL)
        assert reader.communicate(timeout=40)[0].strip() == hashlib.sha256(WEIGHTS).hexdigest()
    until(lambda: manager.statuses()[0].condition.state == "healthy", "it is healthy again")
    no_zombie_is_left()


def test_what_the_registry_says_reaches_the_caller(
    box: Sandbox, registry: ModelRegistry, manager: MountManager
) -> None:
    """A tag that is not there is not found; the place stays clean."""
    reference = f"{registry.host}/models/tiny:v2"
    with pytest.raises(NotFound):
        manager.resolve(reference, READER.access(reference), View())
    with pytest.raises(InvalidReference):
        READER.access("Not A Reference")


def test_two_holders_share_one_fetcher_and_its_cache(
    box: Sandbox, registry: ModelRegistry, manager: MountManager
) -> None:
    """The second holder finds the bytes that the first fetched; the fetcher ends with the last of them."""
    reference = f"{registry.host}/models/tiny:v1"
    path = _mount(manager, box, reference)
    assert (path / "weights.safetensors").read_bytes() == WEIGHTS
    other = MountManager(HolderSettings(cache_dir=box.cache, run_dir=box.run, name="other", log_level="warning"))
    other.start()
    access = READER.access(reference)
    there = box.directory("there")
    other.acquire(other.resolve(reference, access, View()), there, prefetch="none", grant="x", access=access)
    fetched = registry.statistics().bytes_sent
    assert (there / "weights.safetensors").read_bytes() == WEIGHTS
    assert registry.statistics().bytes_sent - fetched < 4096
    pid = manager.statuses()[0].fetcher_pid
    assert pid is not None
    assert other.statuses()[0].fetcher_pid == pid
    other.close(keep=False)
    assert alive(pid)
    assert (path / "config.json").read_text() == "{}"
    manager.close(keep=False)
    assert not alive(pid)


def test_a_command_lists_and_empties_the_cache(box: Sandbox, registry: ModelRegistry, manager: MountManager) -> None:
    """What is mounted is pinned; afterwards it can be removed."""
    path = _mount(manager, box, f"{registry.host}/models/tiny:v1")
    assert (path / "weights.safetensors").read_bytes() == WEIGHTS
    client = FetcherClient(manager.settings.fetcher())
    blobs = client.cache_list()
    assert sum(blob.bytes_cached for blob in blobs) >= len(WEIGHTS)
    assert all(blob.pinned for blob in blobs)
    with pytest.raises(WeightlessError):
        client.cache_remove(tuple(blob.digest for blob in blobs))
    assert all(blob.damaged_blocks == 0 for blob in client.cache_verify())
    manager.unmount(manager.statuses()[0].id)
    assert {blob.digest for blob in client.cache_remove()} == {blob.digest for blob in blobs}
    client.close()
