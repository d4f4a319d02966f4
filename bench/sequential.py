"""A cold sequential read through the mount against curl of the same blob from the same server, in turns in one run; then the
same file again, from the page cache.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.results import Result
from bench.servers import REPOSITORY, limited, nginx, nginx_is_there
from bench.workshop import plugin, published, workshop
from weightless import units
from weightless.demo.pack import PackedModel, pack_model

FILE_BYTES = 1_000_000_000
LIMIT_BYTES_PER_S = 200_000_000
NAME = "model.safetensors"


def measure() -> list[Result]:
    with workshop() as directory:
        source = directory / "source"
        source.mkdir()
        _make(source / NAME)
        packed = pack_model(source)
        results: list[Result] = []
        with _server(directory, source, packed, limit=0) as host:
            results += _compare(directory, host, packed, "as fast as loopback goes", rounds=5, target=0.5)
        with _server(directory, source, packed, limit=LIMIT_BYTES_PER_S) as host:
            rate = units.rate(LIMIT_BYTES_PER_S)
            results += _compare(directory, host, packed, f"at {rate}", rounds=3, target=0.9)
    return results


@contextmanager
def _server(directory: Path, source: Path, packed: PackedModel, *, limit: int) -> Iterator[str]:
    if limit or not nginx_is_there():
        with limited(source, limit) as host:
            yield host
        return
    own = directory / "nginx"
    own.mkdir()
    with nginx(own, packed) as host:
        yield host
    shutil.rmtree(own)


def _compare(
    directory: Path, host: str, packed: PackedModel, words: str, *, rounds: int, target: float
) -> list[Result]:
    digest = max(packed.blobs, key=lambda digest: packed.blobs[digest].size)
    url = f"http://{host}/v2/{REPOSITORY}/blobs/{digest}"
    curl: list[float] = []
    null: list[float] = []
    mount: list[float] = []
    again: list[float] = []
    _time(["curl", "-sf", "-o", os.devnull, url])  # warms the server's page cache
    for number in range(rounds):
        null.append(FILE_BYTES / _time(["curl", "-sf", "-o", os.devnull, url]))
        # The equal of a cold read, which leaves the bytes on the disk as well.
        curl.append(FILE_BYTES / _time(["curl", "-sf", "-o", str(directory / "curl.out"), url]))
        (directory / "curl.out").unlink()
        name = f"{'limited' if target > 0.5 else 'free'}{number}"
        with plugin(directory, name) as node, published(node, name, f"{host}/{REPOSITORY}:v1", prefetch="full") as path:
            read = ["dd", f"if={path / NAME}", f"of={os.devnull}", "bs=1M"]
            mount.append(FILE_BYTES / _time(read))
            again.append(FILE_BYTES / _time(read))
    cold, peer, warm = (statistics.median(values) for values in (mount, curl, again))
    # Of each round: what the machine does besides touches both of its halves.
    ratios = [one / other for one, other in zip(mount, curl, strict=True)]
    ratio = statistics.median(ratios)
    return [
        Result(what=f"curl to a file, {words}", value=peer, shown=units.rate(peer)),
        Result(
            what=f"curl to /dev/null, {words}", value=statistics.median(null), shown=units.rate(statistics.median(null))
        ),
        Result(what=f"cold read through the mount, {words}", value=cold, shown=units.rate(cold)),
        Result(
            what="  mount / curl to /dev/null",
            value=cold / statistics.median(null),
            shown=f"{cold / statistics.median(null):.2f}",
        ),
        Result(
            what="  mount / curl to a file",
            value=ratio,
            shown=f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            target=target,
            bound="at least",
        ),
        Result(
            what="  read again",
            value=warm,
            shown=units.rate(warm),
            target=1e9,
            bound="at least",
            target_shown="1 GB/s (page cache)",
        ),
    ]


def _make(path: Path) -> None:
    """Random bytes once, repeated: nothing here compresses or deduplicates, and making a gigabyte of them takes long."""
    piece = os.urandom(10_000_000)
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // len(piece)):
            file.write(piece)


def _time(command: list[str]) -> float:
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun
