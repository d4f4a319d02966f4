"""Reading a complete, verified artifact, against the same bytes in a local file on the same disk, in turns: after a new publish
of it, and through the FUSE mount that was there while it was fetched; with the page cache emptied of it before each read, and
then once more, from the page cache. And a model whose layers are tars, published anew once its files were copied out of them.

What is read again comes from the kernel alone. Linux 6.18 keeps what came through FUSE in pages of 4 KiB, and most of a local
file in larger folios (by /proc/kpageflags), which are copied faster: that is what native mounts are for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench import models
from bench.results import Result, ratios
from bench.scale import by_scale
from bench.servers import Server, nginx
from bench.workshop import dd, forget, forget_cache, mounts, plugin, published, wait_verified, workshop
from weightless.demo.plugin import NodePlugin

_TENSORS = by_scale(small=3, full=30)
_ROUNDS = by_scale(small=2, full=5)
_GOOD_BYTES_PER_S = 1e9


class _Rates:
    """Of one way to read, round by round."""

    def __init__(self) -> None:
        self.empty: list[float] = []
        self.again: list[float] = []

    def take(self, size: int, paths: tuple[Path, ...]) -> None:
        self.empty.append(size / dd(*paths).seconds)
        self.again.append(size / dd(*paths).seconds)


def measure() -> list[Result]:
    with workshop() as directory:
        model = models.write(directory / "source", tensors=_TENSORS)
        archive = models.write(directory / "archived", tensors=_TENSORS, encoding="tar")
        with (
            nginx(directory / "nginx", model.packed) as server,
            nginx(directory / "nginx-tar", archive.packed) as tars,
            plugin(directory, "warm") as node,
        ):
            same = _same_mount(node, server, model)
            raw = _new_publish(node, server, model, chart="warm")
            copying = _copy_out(node, tars, archive)
            return [*same, *raw, copying, *_new_publish(node, tars, archive, of="tar layers: ")]


def _same_mount(node: NodePlugin, server: Server, model: models.Model) -> list[Result]:
    ours, local = _Rates(), _Rates()
    with published(node, "first", server.reference, prefetch="full") as target:
        paths = model.below(target)
        dd(*paths)
        wait_verified(node)
        for _ in range(_ROUNDS):
            _take_local(local, model)
            for path in paths:
                _let_go(path)
            forget_cache(node)
            ours.take(model.size, paths)
    local_rate = Result(
        what="local file, page cache empty",
        unit="bytes/s",
        samples=tuple(local.empty),
        chart="warm",
        label="local file",
        peer=True,
    )
    return [
        local_rate,
        Result(what="local file, read again", unit="bytes/s", samples=tuple(local.again)),
        Result(
            what="complete, through FUSE, page cache empty",
            unit="bytes/s",
            samples=tuple(ours.empty),
            # No more can be asked than the disk gives.
            target=_GOOD_BYTES_PER_S if local_rate.value >= _GOOD_BYTES_PER_S else None,
            bound="at least",
            chart="warm",
            label="through FUSE",
        ),
        _at_least(0.5, "  FUSE / local file, page cache empty", ours.empty, local.empty),
        Result(what="  read again", unit="bytes/s", samples=tuple(ours.again)),
        _at_least(0.9, "  FUSE / local file, read again", ours.again, local.again),
    ]


def _copy_out(node: NodePlugin, server: Server, model: models.Model) -> Result:
    """Beside a mount by FUSE, which nobody reads."""
    with published(node, "archive", server.reference, prefetch="full"):
        wait_verified(node)
        begun = time.monotonic()
        wait_verified(node, copies=len(model.shards))
        return Result(
            what="tar layers: copying out, after verification", unit="seconds", samples=(time.monotonic() - begun,)
        )


def _new_publish(
    node: NodePlugin, server: Server, model: models.Model, *, of: str = "", chart: str = ""
) -> list[Result]:
    ours, local = _Rates(), _Rates()
    publishing: list[float] = []
    for number in range(_ROUNDS):
        _take_local(local, model)
        forget_cache(node)
        begun = time.monotonic()
        with published(node, f"again{number}", server.reference, prefetch="full") as target:
            publishing.append(time.monotonic() - begun)
            if (ways := {mount.served_by for mount in mounts(node)}) != {"native"}:
                raise AssertionError(f"not native, but served by {ways}")
            ours.take(model.size, model.below(target))
    return [
        Result(what=f"{of}new publish of what is cached", unit="seconds", samples=tuple(publishing)),
        Result(
            what=f"  {of}its first read, page cache empty",
            unit="bytes/s",
            samples=tuple(ours.empty),
            chart=chart,
            label="new publish",
        ),
        _at_least(0.98, f"  {of}new publish / local file, page cache empty", ours.empty, local.empty),
        _at_least(0.9, f"  {of}new publish / local file, read again", ours.again, local.again),
    ]


def _take_local(local: _Rates, model: models.Model) -> None:
    forget(model.paths)
    local.take(model.size, model.paths)


def _at_least(target: float, what: str, ours: list[float], theirs: list[float]) -> Result:
    return Result(what=what, unit="ratio", samples=ratios(ours, theirs), target=target, bound="at least")


def _let_go(path: Path) -> None:
    """The mount's own pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
