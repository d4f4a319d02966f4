"""The demonstration's registry and packer: what they serve is what lies on the disk."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import httpx
import pytest

from fuse.artifact.digest import Digest
from tests.support.waiting import until
from weightless.demo.pack import pack_model
from weightless.demo.registry import ModelRegistry, RateLimit
from weightless.demo.sources import SyntheticSource

CONTENT = {"config.json": b"{}", "sub/model.safetensors": bytes(range(256)) * 5000, "README.md": b"# x"}


class Clock:
    """Time that passes in sleeps only, which take longer than was asked for, and than a piece may."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 0.0015 * (seconds > 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


def test_raw_layers_are_the_files(model: Path) -> None:
    """One layer a file, configs first, each under its path."""
    packed = pack_model(model)
    with ModelRegistry() as registry:
        digest = packed.serve(registry, "a/b", "v1")
        with httpx.Client(base_url=registry.url, trust_env=False) as client:
            answer = client.get("/v2/a/b/manifests/v1")
            assert str(digest) == answer.headers["docker-content-digest"]
            layers = answer.json()["layers"]
            served = {
                layer["annotations"]["org.cncf.model.filepath"]: client.get(f"/v2/a/b/blobs/{layer['digest']}").content
                for layer in layers
            }

    assert CONTENT == served
    assert ["config.json", "sub/model.safetensors", "README.md"] == list(served)
    assert [len(content) for content in served.values()] == [layer["size"] for layer in layers]


@pytest.mark.parametrize("legacy", [False, True])
def test_tar_layers_are_archives_of_one_file(model: Path, legacy: bool) -> None:
    """They are joined while they are served, and any tar reader reads them."""
    vendor = "cnai" if legacy else "cncf"
    packed = pack_model(model, encoding="tar", legacy=legacy)
    for layer in json.loads(packed.manifest)["layers"]:
        source = packed.blobs[Digest.parse(layer["digest"])]
        with tarfile.open(fileobj=io.BytesIO(source.read(0, source.size))) as archive:
            (member,) = archive.getmembers()
            file = archive.extractfile(member)
            assert file is not None
            assert CONTENT[member.name] == file.read()
        assert member.name == layer["annotations"][f"org.{vendor}.model.filepath"]
        assert layer["mediaType"].startswith(f"application/vnd.{vendor}.model.")


def test_a_synthetic_terabyte_is_the_same_from_every_offset() -> None:
    """Overlapping reads agree, whatever their alignment."""
    source = SyntheticSource(1 << 40, seed=7)
    offset = (1 << 39) + 4095

    content = source.read(offset, 10_000)

    assert 10_000 == len(content)
    assert content[5000:] == source.read(offset + 5000, 5000)
    assert content != source.read(offset + 4096, 10_000)


def test_a_rate_is_reached_though_sleeps_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one sleep took too much, the next piece makes up for; a long pause is not made up for."""
    clock = Clock()
    monkeypatch.setattr("weightless.demo.registry.time", clock)
    limit = RateLimit(1_000_000)

    for _ in range(1000):
        limit.take(1000)

    assert 0.98 < clock.now - Clock.now < 1.01
    clock.now += 100
    for _ in range(1000):
        limit.take(1000)
    assert 100 + 1.97 < clock.now - Clock.now < 100 + 2.01


def test_the_rate_is_shared_by_all_connections() -> None:
    """Half a megabyte at a megabyte a second takes half a second, and is counted."""
    with ModelRegistry(rate_bytes_per_s=1_000_000) as registry:
        digest = registry.add_blob(bytes(250_000))
        start = time.monotonic()
        for _ in range(2):
            httpx.get(f"{registry.url}/v2/x/blobs/{digest}", trust_env=False)
        elapsed_s = time.monotonic() - start
        # What has arrived is counted when the call that sent it returns.
        until(lambda: registry.statistics().bytes_sent >= 500_000, "the last bytes are counted")
        statistics = registry.statistics()

    assert 0.3 < elapsed_s < 5
    assert (2, 500_000) == (statistics.requests_by_blob[str(digest)], statistics.bytes_sent)
