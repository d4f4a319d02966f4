"""A simulated power cut: the cache directory as it was at some moment of writing, used by a new node: every byte right.

A copy made while the cache is written has what a disk may have after a power loss: files of different moments, indexes that are
newer than their data, data that never arrived. On top of that some blocks are emptied, torn or put back to zeros, some index
entries lost, some files cut short or missing. Every case has a seed, which it prints.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fuse.artifact.digest import Digest
from fuse.cache.index import HEADER_BYTES
from tests.support.fetcher import FetcherProcess, Worker, pattern, wait_until
from tests.support.registry import FaultyRegistry

MIB = 1024 * 1024
CONTENTS = [
    pattern(12 * MIB + 17, seed=1),
    pattern(3 * MIB + 5, seed=2),
    pattern(25 * MIB, seed=3),
    pattern(100, seed=4),
]
BLOBS = [(Digest.of(content), len(content)) for content in CONTENTS]


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        for content in CONTENTS:
            registry.add_blob(content)
        yield registry


def copy_of(cache: Path, target: Path, generator: random.Random) -> None:
    """Files in random order, each read at its own moment, as they are being written."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    generator.shuffle(files)
    for path in files:
        copied = target / path.relative_to(cache)
        copied.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # temporary files come and go
            shutil.copyfile(path, copied)
    (target / "fetcher.sock").unlink(missing_ok=True)


def lose(target: Path, generator: random.Random) -> list[str]:
    """What power loss does besides: each kind of damage, here and there. Says what was done."""
    done = []
    for path in sorted(target.glob("blobs/sha256/*.data")):
        size = path.stat().st_size
        for _ in range(generator.randrange(4)):
            at = generator.randrange(size)
            length = min(generator.choice((1, 512, 4096, MIB)), size - at)
            junk = generator.choice((bytes(length), generator.randbytes(length)))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(junk)
            done.append(f"{path.name[:8]} {at}+{length}")
    for path in sorted(target.glob("blobs/sha256/*.index")):
        match generator.randrange(8):
            case 0:
                path.unlink()
            case 1:
                os.truncate(path, generator.randrange(path.stat().st_size))
            case 2:
                with path.open("r+b") as file:
                    file.seek(HEADER_BYTES)
                    file.write(bytes(8 * generator.randrange(1, 4)))
            case 3:
                os.truncate(path.with_suffix(".data"), generator.randrange(MIB))
            case 4:
                with path.open("r+b") as file:
                    file.seek(HEADER_BYTES)
                    file.write(generator.randbytes(8))
            case _:
                continue
        done.append(f"index of {path.name[:8]}")
    return done


def read(worker: Worker, number: int, generator: random.Random) -> bytes:
    """A blob as a worker reads it: block by block in any order, checked at first use, reported when damaged."""
    files = worker.open(number)
    assert files is not None
    blocks = list(range(files.blocks))
    generator.shuffle(blocks)
    content = {}
    for block in blocks:
        if files.has(block):
            if files.check(block):
                content[block] = files.read(block * MIB, MIB)
                continue
            worker.damage(number, block)
        content[block] = worker.demand(number, block)
    return b"".join(content[block] for block in range(files.blocks))


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_is_right_after_a_power_cut(tmp_path: Path, registry: FaultyRegistry, seed: int) -> None:
    """Whatever reached the disk, in whatever order: nothing wrong is served, nothing good is condemned, all is verified."""
    print(f"seed {seed}")
    generator = random.Random(seed)
    registry.rate.bytes_per_s = 60 * MIB
    moment = generator.randrange(1, sum(map(len, CONTENTS)))
    cache, copy = tmp_path / "cache", tmp_path / "copy"
    with (
        FetcherProcess(cache) as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", BLOBS, registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        for number, content in enumerate(CONTENTS):
            worker.want(number, 0, -(-len(content) // MIB), "background")
        wait_until(lambda: admin.progress("m").bytes_cached >= moment, f"{moment} bytes")
        copy_of(cache, copy, generator)
    print(f"copied at {moment} bytes, lost {lose(copy, generator)}")
    registry.rate.bytes_per_s = None
    with (
        FetcherProcess(copy) as fetcher,
        fetcher.connect() as admin,
        admin.attach("m", BLOBS, registry.url) as worker,
    ):
        admin.grant("m", registry.url)
        numbers = list(range(len(BLOBS)))
        generator.shuffle(numbers)
        for number in numbers:
            assert read(worker, number, generator) == CONTENTS[number], f"seed {seed}, blob {number}"
        wait_until(lambda: admin.progress("m").verified_blobs == len(BLOBS), "all to be verified")
        assert not worker.quarantined
        assert not worker.failed
