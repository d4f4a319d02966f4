"""Labels of mounted models, as a kernel that enforces a policy sees them: who reads is in a container's domain.

All tests share one node plugin, which runs in the domain of a privileged container as these tests do: the machine is slow.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import grpc
import pytest

from csi.pb import csi_pb2
from fuse.mounting import overlay
from fuse.mounting.mountinfo import Entry, MountTable
from fuse.mounting.selinux import FOR_CONTAINERS
from tests.support.cli import CommandLine
from tests.support.leaks import sandbox
from tests.support.models import name_host
from tests.support.node import MULTI_READER, Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

FILE = "weights/model-00001-of-00003.safetensors"
UNKNOWN = "system_u:object_r:no_such_type_t:s0"
Way = Literal["fuse", "native"]
Publish = Callable[..., Path]
needs_overlay = pytest.mark.skipif(not overlay.kernel_can(), reason="native mounts need Linux 6.5")
ways = pytest.mark.parametrize("way", ["fuse", pytest.param("native", marks=needs_overlay)])


@dataclass(frozen=True, slots=True)
class Scene:
    """A node plugin, a registry, and a model that is whole in the cache."""

    node: Node
    cli: CommandLine
    reference: str
    config: Path

    def configure(self, label: str) -> None:
        self.config.write_text(f'[mount]\nselinux-context = "{label}"\n' if label else "")

    def doctor(self) -> dict[str, str]:
        """What it says of SELinux."""
        found = json.loads(self.cli.run("--config", self.config, "doctor", "--json", timeout_s=200).out)
        return next(finding for finding in found if finding["check"] == "SELinux")


@pytest.fixture(scope="module")
def scene(packed: PackedModel) -> Iterator[Scene]:
    with FaultyRegistry() as registry, sandbox() as place:
        packed.serve(registry, "models/small", "1.0")
        certs = place.directory("certs")
        name_host(certs, registry.host)
        config = place.root / "weightless.toml"
        cli = CommandLine(place)
        node = Node(place, "--config", str(config), "--certs-dir", str(certs))
        node.start_limit_s = 200
        made = Scene(node, cli, f"{registry.host}/models/small:1.0", config)
        made.configure("")
        cli.do("--plain-http", "pull", made.reference, timeout_s=200)
        with node:
            yield made


@pytest.fixture
def publish(scene: Scene) -> Iterator[Publish]:
    """Publishes the model for a pod, with mount options; all volumes are taken back, and leave nothing."""
    published: dict[str, Path] = {}

    def call(pod: str, way: Way, *flags: str) -> Path:
        target = scene.node.target(pod)
        mount = csi_pb2.VolumeCapability.MountVolume(mount_flags=flags)
        mode = csi_pb2.VolumeCapability.AccessMode(mode=MULTI_READER)
        attributes = {"reference": scene.reference, "native": "off" if way == "fuse" else "auto"}
        capability = csi_pb2.VolumeCapability(mount=mount, access_mode=mode)
        scene.node.publish(pod, target, attributes, volume_capability=capability, timeout_s=200)
        published[pod] = target
        return target

    yield call
    for pod, target in published.items():
        scene.node.unpublish(pod, target)
    assert scene.node.leftovers() == []


def by_kubelet(categories: str) -> str:
    """The mount option of kubelet for a pod with this level (util.AddSELinuxMountOption)."""
    return f'context="{FOR_CONTAINERS}:{categories}"'


def reads(directory: Path, categories: str, model: Path) -> bool:
    """Whether a container that has the directory mounted may read a file: nothing above it is passed through then."""
    domain = f"system_u:system_r:container_t:s0:{categories}"
    done = subprocess.run(["runcon", domain, "cat", FILE], cwd=directory, capture_output=True, check=False)
    if done.returncode != 0:
        assert b"Permission denied" in done.stderr
        return False
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256((model / FILE).read_bytes()).digest()
    return True


def label_of(path: Path) -> str:
    return os.getxattr(path, "security.selinux").rstrip(b"\0").decode()


def mounted(directory: Path) -> Entry:
    entry = MountTable.read().at(directory)
    assert entry is not None
    return entry


def is_well(node: Node, volume_id: str, target: Path) -> bool:
    return not node.stats(volume_id, target).volume_condition.abnormal


def is_relabelled(directory: Path) -> bool:
    """Whether kubelet would let the container runtime label each file, which nothing read-only allows (GetSELinuxSupport)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    options = next(line.split()[-1] for line in reversed(lines) if line.split()[4] == str(directory))
    return "seclabel" in options.split(",")


@ways
def test_without_a_label_the_policy_decides(publish: Publish, small_model: Path, way: Way) -> None:
    """This one lets containers read both ways. But kubelet would have a native mount relabelled, and that cannot be."""
    target = publish("pod", way)
    assert mounted(target).file_system == ("fuse.weightless" if way == "fuse" else "overlay")
    assert label_of(target / FILE).split(":")[2] == ("fusefs_t" if way == "fuse" else "container_tmpfs_t")
    assert reads(target, "c1,c2", small_model)
    assert is_relabelled(target) == (way == "native")
    with pytest.raises(OSError) as refused:
        os.setxattr(target / FILE, "security.selinux", FOR_CONTAINERS.encode() + b"\0")
    assert refused.value.errno == errno.EROFS


@ways
def test_a_label_without_categories_is_for_every_container(publish: Publish, small_model: Path, way: Way) -> None:
    """From one mount; kubelet has nothing relabelled."""
    targets = [publish(pod, way, f"context={FOR_CONTAINERS}") for pod in ("one", "two")]
    assert {label_of(path) for target in targets for path in (target, target / FILE)} == {FOR_CONTAINERS}
    assert reads(targets[0], "c1,c2", small_model)
    assert reads(targets[1], "c5,c9", small_model)
    assert not any(map(is_relabelled, targets))
    assert mounted(targets[0]).device == mounted(targets[1]).device


@ways
def test_kubelets_label_keeps_other_containers_out(publish: Publish, small_model: Path, way: Way) -> None:
    """Pods of two levels have a mount each, those of one level share it; a repeated publish keeps to its label."""
    first, same = (publish(pod, way, by_kubelet("c1,c2")) for pod in ("one", "same"))
    other = publish("two", way, by_kubelet("c5,c9"))
    assert mounted(first).device == mounted(same).device != mounted(other).device
    publish("one", way, f"context={FOR_CONTAINERS}:c1,c2")
    for flags in ((), (by_kubelet("c5,c9"),)):
        with pytest.raises(grpc.RpcError) as refused:
            publish("one", way, *flags)
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert reads(first, "c1,c2", small_model)
    assert reads(other, "c5,c9", small_model)
    assert not reads(first, "c5,c9", small_model)
    assert not reads(other, "c1,c2", small_model)


@ways
def test_a_label_that_the_policy_does_not_know_is_refused(scene: Scene, publish: Publish, way: Way) -> None:
    """With a cure, and nothing is left."""
    with pytest.raises(grpc.RpcError) as refused:
        publish("pod", way, f"context={UNKNOWN}")
    assert refused.value.code() == grpc.StatusCode.INTERNAL
    assert UNKNOWN in str(refused.value.details())
    assert FOR_CONTAINERS in str(refused.value.details())
    assert scene.node.leftovers() == []


def test_a_killed_plugin_finds_its_labels_again(scene: Scene, publish: Publish, small_model: Path) -> None:
    """Also where the configuration has another one by now, which is for mounts to come; and what went is mounted as it was."""
    held = ("fuse", "native") if overlay.kernel_can() else ("fuse",)
    scene.node.stop()
    scene.configure(FOR_CONTAINERS)
    scene.node.start()
    targets = [publish(way, way) for way in held]
    before = [mounted(target) for target in targets]
    scene.node.kill()
    scene.configure("")
    scene.node.start()
    for way, target, entry in zip(held, targets, before, strict=True):
        publish(way, way)
        assert mounted(target).device == entry.device
        assert reads(target, "c1,c2", small_model)
        assert mounted(publish(f"later-{way}", way)).device != entry.device
    scene.node.stop()
    for entry in MountTable.read().below(scene.node.kubelet):
        subprocess.run(["umount", "--lazy", entry.mountpoint], check=True)
    scene.node.start()
    for way, target in zip(held, targets, strict=True):
        until(partial(is_well, scene.node, way, target), "it is mounted again", within_s=200)
        assert label_of(target / FILE) == FOR_CONTAINERS
        assert reads(target, "c1,c2", small_model)


def test_doctor_tells_whether_containers_may_read(scene: Scene) -> None:
    """Without a label, with one that the policy does not have, and with the right one."""
    try:
        for label, state in {"": "warning", UNKNOWN: "broken", FOR_CONTAINERS: "ok"}.items():
            scene.configure(label)
            assert scene.doctor()["state"] == state
        assert scene.doctor()["what"] == f"enforcing; models are mounted as {FOR_CONTAINERS}"
    finally:
        scene.configure("")


def test_a_person_may_mount_for_containers(scene: Scene, small_model: Path) -> None:
    """As for `podman run --volume`."""
    directory = scene.cli.sandbox.directory("model")
    options = ("--native", "off", "--selinux-context", FOR_CONTAINERS)
    scene.cli.do("--plain-http", "mount", *options, scene.reference, directory, timeout_s=200)
    try:
        assert reads(directory, "c1,c2", small_model)
    finally:
        scene.cli.do("unmount", directory, timeout_s=200)
