"""The cache as its users see it: bytes are fetched once, and kept."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import need_program
from tests.support.cli import CommandLine
from tests.support.disks import ext4
from tests.support.leaks import Sandbox
from tests.support.models import digest_tree
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = pytest.mark.kernel


def layers(packed: PackedModel) -> dict[str, int]:
    """Sizes of the layers by digest."""
    return {layer["digest"]: layer["size"] for layer in json.loads(packed.manifest)["layers"]}


def test_a_second_mount_fetches_no_byte(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """The cache outlives the processes: the second mount asks the registry only for the proof of its right."""
    with cli.mounted(reference):
        cli.wait_cached()
    registry.reset_statistics()
    with cli.mounted(reference) as mounted:
        assert digest_tree(small_model) == digest_tree(mounted)
    assert 0 == registry.statistics().bytes_sent


def test_two_mounts_fetch_each_byte_once(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path, packed: PackedModel
) -> None:
    """Readers of two mounts at the same time share every transfer."""
    registry.rate.bytes_per_s = 40_000_000
    with (
        cli.mounted(reference, "--prefetch", "none", name="one") as one,
        cli.mounted(reference, "--prefetch", "none", name="two") as two,
    ):
        read: dict[Path, dict[str, str]] = {}
        threads = [
            threading.Thread(target=lambda path=path: read.update({path: digest_tree(path)})) for path in (one, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {one: digest_tree(small_model), two: digest_tree(small_model)} == read
    sent = registry.statistics().bytes_by_blob
    assert {digest: size for digest, size in layers(packed).items() if size} == {
        digest: count for digest, count in sent.items() if digest in layers(packed)
    }


def test_without_prefetch_little_more_than_what_is_read_is_fetched(
    cli: CommandLine, registry: FaultyRegistry, reference: str
) -> None:
    """A read of 100 bytes at one place in a cold model fetches a block or two, not the model."""
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        registry.reset_statistics()
        with (mounted / "weights" / "model-00001-of-00003.safetensors").open("rb", buffering=0) as file:
            assert 100 == len(os.pread(file.fileno(), 100, 5_000_000))
        assert registry.statistics().bytes_sent <= 2 * 1024 * 1024


def test_cache_commands_list_verify_and_remove(cli: CommandLine, reference: str, packed: PackedModel) -> None:
    """What `pull` fetched is listed, verifies, cannot be removed while it is mounted, and is gone when removed."""
    cli.do("pull", reference)
    listed = {blob["digest"]: blob for blob in json.loads(cli.do("cache", "ls", "--json").out)}
    assert {digest for digest, size in layers(packed).items() if size} <= set(listed)
    assert all(blob["complete"] for blob in listed.values())
    cli.do("cache", "verify")
    largest = max(layers(packed), key=lambda digest: layers(packed)[digest])
    with cli.mounted(reference):
        refused = cli.run("cache", "rm", largest)
        assert 1 == refused.code, str(refused)
    cli.do("cache", "rm", largest)
    assert largest not in cli.do("cache", "ls", "--json").out
    cli.do("cache", "rm", "--all")
    assert [] == json.loads(cli.do("cache", "ls", "--json").out)


def test_a_full_disk_is_not_an_error(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """A cache on a file system far smaller than the model: every file reads right, none of it fails."""
    sandbox.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(sandbox.cache)], check=True)
    try:
        with CommandLine(sandbox).mounted(reference) as mounted:
            assert digest_tree(small_model) == digest_tree(mounted)
    finally:
        subprocess.run(["umount", str(sandbox.cache)], check=True)


def test_a_dead_disk_is_not_an_error(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """The cache's disk fails under a mount whose bytes are on it: every file reads right, and the mount says what is wrong."""
    need_program("mkfs.ext4", "e2fsprogs")
    cli = CommandLine(sandbox)
    with ext4(sandbox.cache, 96) as disk, cli.mounted(reference) as mounted:
        cli.wait_cached()
        first = "weights/model-00001-of-00003.safetensors"
        assert (small_model / first).read_bytes() == (mounted / first).read_bytes()
        disk.fail()
        with (mounted / first).open("rb") as file:
            # The mount's own pages would answer: the worker is to meet a block on the disk that it has found good before.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert digest_tree(small_model) == digest_tree(mounted)
        until(lambda: cli.status()[0]["condition"]["state"] == "degraded", "the mount to complain")
        assert "disk" in cli.status()[0]["condition"]["reason"]
