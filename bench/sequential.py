"""A cold sequential read through the mount against curl of the same blob to a file, from the same server, in turns: over a link
of 200 MB/s (our own registry), and as fast as loopback goes (nginx), without TLS and with it.

Also what it costs: processor time of the driver's processes until the blob is verified, against curl's, which verifies nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench import models
from bench.results import Result, ratios
from bench.scale import by_scale
from bench.servers import Server, limited, nginx
from bench.workshop import cpu_seconds, dd, pids, plugin, published, run, wait_verified, workshop
from weightless import units

LINK_BYTES_PER_S = 200_000_000
_TENSORS = by_scale(small=3, full=30)
_ROUNDS = by_scale(small=2, full=5)
_LIMITED_ROUNDS = by_scale(small=1, full=3)


def measure() -> list[Result]:
    with workshop() as directory:
        model = models.write(directory / "source", tensors=_TENSORS)
        results: list[Result] = []
        with limited(model.directory, LINK_BYTES_PER_S) as server:
            results += _compare(
                directory, server, model, f"at {units.rate(LINK_BYTES_PER_S)}", target=0.97, rounds=_LIMITED_ROUNDS
            )
        with nginx(directory / "plain", model.packed) as server:
            results += _compare(directory, server, model, "unlimited", target=0.7, cost=True)
        with nginx(directory / "tls", model.packed, tls=True) as server:
            results += _compare(directory, server, model, "unlimited, TLS", target=0.7)
    return results


def _compare(
    directory: Path,
    server: Server,
    model: models.Model,
    words: str,
    *,
    target: float,
    rounds: int = _ROUNDS,
    cost: bool = False,
) -> list[Result]:
    (digest,) = model.digests
    copy = directory / "curl.out"
    null: list[float] = []
    curl: list[float] = []
    mount: list[float] = []
    curl_cpu: list[float] = []
    our_cpu: list[float] = []
    run(server.curl(digest, os.devnull))  # warms the server's page cache
    for number in range(rounds):
        null.append(model.size / run(server.curl(digest, os.devnull)).seconds)
        # The equal of a cold read, which leaves the bytes on the disk as well.
        peer = run(server.curl(digest, copy))
        copy.unlink()
        curl.append(model.size / peer.seconds)
        curl_cpu.append(peer.cpu_s * 1e9 / model.size)
        name = f"{server.host.rpartition(':')[2]}-{number}"
        with (
            plugin(directory, name, server.plugin_arguments) as node,
            published(node, name, server.reference, prefetch="full") as target_path,
        ):
            begun = time.monotonic()  # nothing is fetched in time that is not counted
            processes = pids(node)
            before = sum(map(cpu_seconds, processes))
            dd(*model.below(target_path))
            mount.append(model.size / (time.monotonic() - begun))
            wait_verified(node)
            our_cpu.append((sum(map(cpu_seconds, processes)) - before) * 1e9 / model.size)
    return [
        Result(
            what=f"curl to a file, {words}",
            unit="bytes/s",
            samples=tuple(curl),
            chart="cold",
            label=f"curl, {words}",
            peer=True,
        ),
        Result(what="  curl to /dev/null", unit="bytes/s", samples=tuple(null)),
        Result(
            what="  cold read through the mount",
            unit="bytes/s",
            samples=tuple(mount),
            chart="cold",
            label=f"mount, {words}",
        ),
        Result(
            what=f"  mount / curl to a file, {words}",
            unit="ratio",
            samples=ratios(mount, curl),
            target=target,
            bound="at least",
        ),
        *(_cost(our_cpu, curl_cpu) if cost else []),
    ]


def _cost(ours: list[float], curls: list[float]) -> list[Result]:
    return [
        Result(what="  processor time a GB, driver", unit="seconds", samples=tuple(ours)),
        Result(what="  processor time a GB, curl", unit="seconds", samples=tuple(curls)),
        Result(what="  processor time, driver / curl", unit="ratio", samples=ratios(ours, curls), target=4.0),
    ]
