"""Eight readers in three pods load one cold model at once, each loader twice: what the registry sends, against the size of the
artifact, and the most memory that is a process's own (RssAnon) meanwhile. The registry is our own, which counts, at full speed.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench import models
from bench.readers import Reader
from bench.results import Result
from bench.scale import by_scale
from bench.servers import CountingServer, limited
from bench.workshop import mounts, peaks, plugin, published, workshop

_TENSORS = by_scale(small=3, full=30)
_ROUNDS = by_scale(small=1, full=3)
_PODS = 3
_READERS = ("safetensors", "streamer", "gguf", "eager") * 2


def measure() -> list[Result]:
    sent: list[float] = []
    workers: list[float] = []
    fetchers: list[float] = []
    with workshop() as directory:
        model = models.write(directory / "source", tensors=_TENSORS)
        with limited(model.directory, 0) as server:
            for number in range(_ROUNDS):
                before = server.bytes_sent()
                worker, fetcher = _crowd(directory, f"crowd{number}", server, model)
                sent.append((server.bytes_sent() - before) / model.packed.size)
                workers.append(worker)
                fetchers.append(fetcher)
    return [
        Result(
            what=f"bytes sent to {len(_READERS)} readers in {_PODS} pods / artifact",
            unit="ratio",
            samples=tuple(sent),
            target=1.02,
        ),
        Result(what="  worker's memory meanwhile", unit="bytes", samples=tuple(workers), target=256e6),
        Result(what="  fetcher's memory meanwhile", unit="bytes", samples=tuple(fetchers), target=512e6),
    ]


def _crowd(directory: Path, name: str, server: CountingServer, model: models.Model) -> tuple[int, int]:
    """The most memory of a worker, and of the fetcher."""
    with ExitStack() as stack:
        node = stack.enter_context(plugin(directory, name, server.plugin_arguments))
        targets = [
            stack.enter_context(published(node, f"{name}-{pod}", server.reference, prefetch="full"))
            for pod in range(_PODS)
        ]
        readers = [(how, stack.enter_context(Reader())) for how in _READERS]
        held = mounts(node)
        workers = {mount.worker_pid for mount in held if mount.worker_pid}
        fetchers = {mount.fetcher_pid for mount in held if mount.fetcher_pid}
        with peaks(workers | fetchers) as most:
            for number, (how, reader) in enumerate(readers):
                reader.begin(how, model.below(targets[number % _PODS]))
            for _, reader in readers:
                reader.end()
        return max(most[pid] for pid in workers), max(most[pid] for pid in fetchers)
