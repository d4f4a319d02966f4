"""`weightless index` for real: the program, its fetcher, and registries with and without the referrers API."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from fuse.artifact import chunks, referrers
from fuse.artifact.digest import Digest
from tests.support.commandline import World
from tests.support.dockerregistry import DockerRegistry
from tests.support.models import push_with_oras
from tests.support.pushregistry import PushRegistry
from weightless.demo.pack import pack_model

WEIGHTS = os.urandom(9_000_000)
FILES = {"config.json": b'{"model_type": "tiny"}', "model.safetensors": WEIGHTS}


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.clean()


def expected() -> bytes:
    sums = [hashlib.sha256(WEIGHTS[at : at + (4 << 20)]).digest() for at in range(0, len(WEIGHTS), 4 << 20)]
    return chunks.encode({Digest.of(WEIGHTS): chunks.ChunkDigests(len(WEIGHTS), b"".join(sums))})


@pytest.mark.parametrize("api", [True, False])
def test_an_index_is_pushed_once(world, source, api):
    """What is pushed are the digests of the layer's chunks; saying it again changes nothing, and needs no bytes."""
    with PushRegistry(referrers_api=api) as registry:
        pack_model(source).serve(registry, "models/tiny", "v1")
        reference = f"{registry.host}/models/tiny:v1"
        dry = json.loads(world.run("index", "--dry-run", "--json", reference).stdout)
        assert [] == registry.pushed
        assert "pushed" in world.run("index", reference).stdout
        # Mounts of the same cache find it at once, although the dry run had found none.
        assert [True] == [path.read_bytes().endswith(expected()) for path in (world.cache / "objects/chunks").iterdir()]
        stored = dict(registry._manifests)
        registry.reset_statistics()
        again = json.loads(world.run("index", "--json", reference).stdout)

        assert f"blob {Digest.of(expected())}" in registry.pushed
        assert (dry["index"], "was there already") == (again["index"], again["result"])
        assert stored == registry._manifests
        # The second time it looks up and reads back the index, and none of the model.
        assert str(Digest.of(WEIGHTS)) not in registry.statistics().bytes_by_blob
        tag = referrers.tag_of(Digest.parse(again["reference"].partition("@")[2]))
        assert api is (("models/tiny", tag) not in stored)
    world.is_empty_soon()


def test_who_may_only_pull_is_told_what_is_needed(world, source):
    """And nothing is left behind."""
    with PushRegistry(read_only=True) as registry:
        pack_model(source).serve(registry, "models/tiny", "v1")
        failed = world.run("index", f"{registry.host}/models/tiny:v1", code=1)

    assert "may push to this repository" in failed.stderr
    world.is_empty_soon()


def test_wrong_bytes_are_not_indexed(world, source):
    """A registry whose layer is not what its digest says gets no index of it."""
    with PushRegistry() as registry:
        pack_model(source).serve(registry, "models/tiny", "v1")
        registry.add_blob(bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:], digest=Digest.of(WEIGHTS))
        failed = world.run("index", f"{registry.host}/models/tiny:v1", code=1)

        assert "do not match the digest" in failed.stderr
        assert [] == registry.pushed


def test_a_model_of_small_files_needs_none(world, source):
    """It is said, and is no error."""
    (source / "model.safetensors").write_bytes(WEIGHTS[:1000])
    with PushRegistry() as registry:
        pack_model(source).serve(registry, "models/tiny", "v1")

        assert "needs no index" in world.run("index", f"{registry.host}/models/tiny:v1").stdout


def test_what_oras_pushed_is_indexed_and_mounted_proven(world, source, tmp_path):
    """Debian's docker-registry: the index goes under the tag, and the next cache finds it there."""
    with DockerRegistry(tmp_path / "registry") as registry:
        push_with_oras(source, registry, "models/tiny", tmp_path)
        reference = registry.reference("models/tiny", "1.0")
        pushed = json.loads(world.run("index", "--json", reference).stdout)
        assert ("pushed", 3) == (pushed["result"], pushed["chunks"])
        assert "was there already" in world.run("index", reference).stdout
        world.cache = tmp_path / "fresh"
        world.run("pull", reference)
        found = [path.read_bytes() for path in (world.cache / "objects" / "chunks").iterdir()]

    assert any(content.endswith(expected()) for content in found)
    world.is_empty_soon()
