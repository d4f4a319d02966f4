"""The demonstration: a real model, published through the node plugin's socket, read while most of it is still in the registry.

Everything lies under one temporary directory and on loopback: no cluster, no registry, no credentials; and nothing of it is
left at the end, however it ends.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from fuse.cache.keys import BlobKey, scope_of
from fuse.errors import WeightlessError
from fuse.mounting.mountinfo import MountTable
from weightless import units
from weightless.demo import bar, requirements
from weightless.demo.coverage import blocks_present
from weightless.demo.pack import PackedModel, pack_model
from weightless.demo.plugin import NodePlugin
from weightless.demo.pod import Pod, sums
from weightless.demo.registry import ModelRegistry
from weightless.demo.story import Story
from weightless.options import Settings
from weightless.processes import Watched, family

_REPOSITORY: Final = "demo/all-minilm-l6-v2"
_WEIGHTS: Final = "model.safetensors"
_TENSOR: Final = "encoder.layer.3.attention.self.query.weight"
_VOLUME: Final = "demo"
_END_S: Final = 10.0


def run(settings: Settings, *, rate_bytes_per_s: int) -> None:
    """Raises Missing when the machine lacks something, and whatever goes wrong on the way."""
    requirements.check()
    source = requirements.model_directory()
    story = Story()
    with ExitStack() as stack:
        directory = stack.enter_context(_workshop())
        registry = stack.enter_context(ModelRegistry(rate_bytes_per_s=rate_bytes_per_s))
        story.heading("Weightless: a model is there at once, its bytes come while it is read")
        packed, reference = _serve(story, registry, source, rate_bytes_per_s)
        plugin = NodePlugin(
            directory, cache_dir=directory / "cache", arguments=["--plain-http", "--log-level", settings.log_level]
        )
        with story.step("Start the node plugin") as step:
            stack.enter_context(_running(plugin))
            step.tell("csi.weightless.dev answers on its csi.sock")
        # Started before the clock: how long Python needs to import its libraries is not what is shown.
        pod = stack.enter_context(Pod())
        _walk(story, pod, plugin, registry, packed, source, reference)
    story.line("Nothing is left behind: no mount, no process, no file.")


def _serve(story: Story, registry: ModelRegistry, source: Path, rate_bytes_per_s: int) -> tuple[PackedModel, str]:
    with story.step("Pack MiniLM as a ModelPack artifact") as step:
        packed = pack_model(source, name="all-minilm-l6-v2")
        step.tell(f"{len(packed.blobs) - 1} files, {units.size(packed.size)}")
    with story.step("Serve it from a registry on loopback") as step:
        packed.serve(registry, _REPOSITORY, "v1")
        reference = f"{registry.host}/{_REPOSITORY}:v1"
        step.tell(reference)
    whole_s = packed.size / rate_bytes_per_s
    story.line(f"limited to {units.rate(rate_bytes_per_s)}: to pull first would take {units.duration(whole_s)}")
    return packed, reference


def _walk(
    story: Story,
    pod: Pod,
    plugin: NodePlugin,
    registry: ModelRegistry,
    packed: PackedModel,
    source: Path,
    reference: str,
) -> None:
    begun = time.monotonic()
    with story.step("NodePublishVolume") as step:
        # Without prefetching, so that one can see what reading alone fetches.
        target = plugin.publish(_VOLUME, {"reference": reference, "prefetch": "none"})
        step.tell("the pod could start now")
    try:
        _read(story, pod, plugin, registry, packed, source, target, begun)
    finally:
        with story.step("NodeUnpublishVolume"):
            plugin.unpublish(_VOLUME)


def _read(
    story: Story,
    pod: Pod,
    plugin: NodePlugin,
    registry: ModelRegistry,
    packed: PackedModel,
    source: Path,
    target: Path,
    begun: float,
) -> None:
    weights = target / _WEIGHTS
    with story.step("Read config.json") as step:
        config = json.loads(pod.read(target / "config.json"))
        step.tell(f"{config['model_type']}, {config['num_hidden_layers']} layers, hidden size {config['hidden_size']}")
    with story.step("Read one tensor with safetensors") as step:
        tensor = pod.tensor(weights, _TENSOR)
        step.tell(f"{_TENSOR} {tensor['shape']}, {units.size(tensor['bytes'])}")
    first_s = time.monotonic() - begun
    expected = sums(source / _WEIGHTS)
    _must_be_equal(expected[_TENSOR], tensor["sum"], _TENSOR)
    fetched = registry.statistics().bytes_sent
    story.line(f"{units.size(fetched)} of {units.size(packed.size)} fetched ({fetched / packed.size:.1%})")
    _draw(story, plugin, registry, packed)

    with story.step("Load the whole model") as step:
        loaded = pod.load(weights)
        step.tell(f"{loaded['tensors']} tensors at {units.rate(loaded['bytes'] / step.seconds)}")
    whole_s = step.seconds
    for name, got in pod.sums(weights).items():
        _must_be_equal(expected[name], got, name)
    story.line("every tensor equals the original")
    _draw(story, plugin, registry, packed)
    with story.step("Load it once more") as step:
        pod.load(weights)
        step.tell("from memory")
    story.line(
        f"First tensor {units.duration(first_s)} after the publish began; the whole load took {units.duration(whole_s)}."
    )


def _draw(story: Story, plugin: NodePlugin, registry: ModelRegistry, packed: PackedModel) -> None:
    weights = max(packed.blobs, key=lambda digest: packed.blobs[digest].size)
    key = BlobKey(weights, packed.blobs[weights].size, scope_of(registry.host))
    present = blocks_present(plugin.cache_dir, key)
    story.line(f"{_WEIGHTS}  {bar.bar(present, story.width - len(_WEIGHTS) - 10)}")
    if not all(present):
        story.line(f"{' ' * len(_WEIGHTS)}  {bar.LEGEND}")


def _must_be_equal(expected: str, got: str, name: str) -> None:
    if got != expected:
        raise WeightlessError(f"tensor {name} differs from the original", where="demo", fix="please report this")


@contextmanager
def _workshop() -> Iterator[Path]:
    """A directory of our own. It is removed only when nothing is mounted below it."""
    directory = Path(tempfile.mkdtemp(prefix="weightless-demo-")).resolve()
    try:
        yield directory
    finally:
        left = MountTable.read().below(directory.resolve())
        if left:
            raise WeightlessError(
                f"still mounted: {', '.join(str(entry.mountpoint) for entry in left)}",
                where="demo",
                fix=f"umount them, then remove {directory}",
            )
        shutil.rmtree(directory)


@contextmanager
def _running(plugin: NodePlugin) -> Iterator[None]:
    """The plugin; at the end it is gone, and so is every process that it started."""
    plugin.start()
    try:
        yield
    finally:
        with Watched(family(plugin.pid)) as watched:
            plugin.stop()
            left = watched.wait(_END_S)
        if left:
            raise WeightlessError(f"processes are left: {left}", where="demo", fix=f"see {plugin.log}")
