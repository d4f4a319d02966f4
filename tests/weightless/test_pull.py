"""pull, inspect and cache for real: the program, its fetcher and a registry on loopback; no mount, so no root is needed."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.support.commandline import World, poll_until
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import pack_model

FILES = {"config.json": b'{"model_type": "tiny"}', "model.safetensors": os.urandom(5_000_000), "README.md": b"# Tiny\n"}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def registry(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    with FaultyRegistry() as serving:
        pack_model(source).serve(serving, "models/tiny", "v1")
        yield serving


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.clean()


@pytest.fixture
def reference(registry):
    return f"{registry.host}/models/tiny:v1"


def test_pull_fetches_and_verifies_everything_and_a_second_pull_fetches_nothing(world, registry, reference):
    """What the cache lists is complete and verified; nothing runs afterwards."""
    assert "pulled" in world.run("pull", reference).stdout
    blobs = json.loads(world.run("cache", "ls", "--json").stdout)
    assert len(FILES) == len(blobs)
    assert all(blob["complete"] and blob["verified"] and not blob["pinned"] for blob in blobs)
    assert TOTAL == sum(blob["bytes_cached"] for blob in blobs)

    registry.reset_statistics()
    assert "there already" in world.run("pull", reference).stdout
    assert 0 == registry.statistics().bytes_sent
    world.is_empty_soon()


def test_pull_of_what_is_missing_at_the_registry_fails_with_its_name(world, registry, reference):
    """A blob that the registry has lost is no reason to wait for ever."""
    lost = pack_model(world.root / "source").blobs
    registry.remove_blob(max(lost, key=lambda digest: lost[digest].size))

    refused = world.run("pull", reference, code=1)

    assert refused.stderr.splitlines()[-2].startswith("error: ") or refused.stderr.splitlines()[-1].startswith(
        "error: "
    )
    assert "Traceback" not in refused.stderr
    world.is_empty_soon()


def test_a_pull_that_does_not_fit_fails_and_keeps_what_is_there(world, reference):
    """It would wait for ever: what fills the cache is its own."""
    config = world.root / "small.toml"
    config.write_text('[cache]\nquota = "2MB"\n')

    refused = world.run("pull", reference, "--config", config, code=1, limit_s=30)

    assert "error: " in refused.stderr
    assert "the cache is full" in refused.stderr
    assert "free space" in refused.stderr
    assert "config.json" in world.run("inspect", reference).stdout
    assert [] != json.loads(world.run("cache", "ls", "--json").stdout)
    world.is_empty_soon()


def test_an_interrupted_pull_keeps_what_is_there(world, registry, reference):
    """The next one goes on from it."""
    registry.rate.bytes_per_s = 1_500_000
    process = world.start("pull", reference)
    with process:
        poll_until(lambda: registry.statistics().bytes_sent > 2_500_000)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert 130 == process.returncode, output
    assert "Traceback" not in output
    world.is_empty_soon()

    kept = sum(blob["bytes_cached"] for blob in json.loads(world.run("cache", "ls", "--json").stdout))
    assert kept > 1_000_000
    registry.rate.bytes_per_s = None
    registry.reset_statistics()
    world.run("pull", reference)
    assert registry.statistics().bytes_sent <= TOTAL - kept


def test_pull_of_a_part_leaves_out_the_rest(world, registry, reference):
    """What the patterns hide is not fetched."""
    world.run("pull", reference, "--exclude-weights")

    assert registry.statistics().bytes_sent < 10_000


def test_inspect_lists_files_without_fetching_any(world, registry, reference):
    """Sizes, types and digests are the manifest's."""
    inspected = json.loads(world.run("inspect", reference, "--json").stdout)

    assert {name: len(content) for name, content in FILES.items()} == {
        file["path"]: file["size"] for file in inspected["files"]
    }
    assert all(file["digest"].startswith("sha256:") and file["lazy"] == "range" for file in inspected["files"])
    assert TOTAL == inspected["bytes_total"]
    assert inspected["reference"].endswith(inspected["digest"])
    shown = world.run("inspect", reference).stdout
    assert all(name in shown for name in FILES)
    assert registry.statistics().bytes_sent < 10_000


def test_blobs_are_removed_by_the_beginning_of_their_digest(world, reference):
    """Or all at once; nothing is removed without being named."""
    world.run("pull", reference)
    first, *others = json.loads(world.run("cache", "ls", "--json").stdout)

    assert "removed 1 blob, " in world.run("cache", "rm", first["digest"][:16]).stdout
    assert len(others) == len(json.loads(world.run("cache", "ls", "--json").stdout))
    world.run("cache", "rm", code=1)
    world.run("cache", "rm", "sha256:0000", code=1)
    world.run("cache", "rm", "../..", code=1)
    assert f"removed {len(others)} blobs" in world.run("cache", "rm", "--all").stdout
    assert "[]" == world.run("cache", "ls", "--json").stdout.strip()


def test_verify_finds_a_flipped_bit_and_the_next_pull_mends_it(world, reference):
    """Exit code 1 and the digest; afterwards the blob is whole again."""
    world.run("pull", reference)
    (data,) = [path for path in world.cache.glob("blobs/sha256/*.data") if path.stat().st_size == 5_000_000]
    world.run("cache", "verify")
    data.chmod(0o644)
    with data.open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"weightless")

    found = world.run("cache", "verify", code=1)

    assert data.name.partition(".")[0] in found.stdout
    assert "damaged" in found.stderr
    world.run("pull", reference)
    world.run("cache", "verify")
    assert FILES["model.safetensors"] == data.read_bytes()


def test_what_is_pinned_stays_until_it_is_unpinned(world, reference):
    """Neither `rm` takes it nor a later pull that needs its room, over restarts of the fetcher; its pin is shown."""
    world.run("pull", "--pin", reference)
    world.is_empty_soon()
    assert "pinned" in world.run("cache", "ls").stdout
    blobs = json.loads(world.run("cache", "ls", "--json").stdout)
    assert {tuple(blob["pinned_by"]) for blob in blobs} == {(reference,)}

    refused = world.run("cache", "rm", blobs[0]["digest"], code=1)
    assert "unpin" in refused.stderr
    assert f"kept {len(blobs)} blobs" in world.run("cache", "rm", "--all").stderr
    assert len(blobs) == len(json.loads(world.run("cache", "ls", "--json").stdout))

    world.run("cache", "pin", blobs[0]["digest"])
    world.run("cache", "unpin", reference)
    world.run("cache", "unpin", reference, code=1)
    world.run("cache", "rm", "--all")
    left = json.loads(world.run("cache", "ls", "--json").stdout)
    assert [(blob["digest"], blob["pinned_by"]) for blob in left] == [(blobs[0]["digest"], [blobs[0]["digest"]])]
    world.run("cache", "unpin", blobs[0]["digest"])
    world.run("cache", "rm", "--all")
    assert "[]" == world.run("cache", "ls", "--json").stdout.strip()
    world.run("cache", "pin", reference)
    world.run("pull", reference)
    world.run("cache", "rm", "--all")
    assert len(blobs) == len(json.loads(world.run("cache", "ls", "--json").stdout))
