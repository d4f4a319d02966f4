"""A directory that looks like kubelet's, a plugin in it, and kubelet's side of the socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc

from csi.mounts import Manager
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from csi.plugin import NodePlugin, PluginSettings
from csi.provisioner import Provisioner
from csi.publisher import AccessSource
from fuse.mounting import device
from fuse.mounting.mountinfo import MountTable
from tests.csi.fakes import REFERENCE, FakeAccess


class Place:
    """The directories of one plugin, below a temporary one."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.kubelet = self.root / "kubelet"
        self.state = self.root / "state"
        self.socket = self.kubelet / "plugins" / "csi.weightless.dev" / "csi.sock"
        self.pods = self.kubelet / "pods"
        self.pods.mkdir(parents=True, exist_ok=True)

    @property
    def mounts(self) -> Path:
        return self.kubelet / "plugins" / "csi.weightless.dev" / "mounts"

    def target(self, pod: str = "11111111-2222-3333-4444-555555555555", volume: str = "model") -> Path:
        """A target as kubelet names it; as it does, its parent is made."""
        path = self.pods / pod / "volumes" / "kubernetes.io~csi" / volume / "mount"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def settings(
        self, checkpoint: Callable[[str], None] = lambda _: None, access: AccessSource | None = None, **more: Any
    ) -> PluginSettings:
        """`more`: other fields."""
        return PluginSettings(
            endpoint=f"unix://{self.socket}",
            node_id="node-a",
            access=access or FakeAccess(),
            kubelet_dir=self.kubelet,
            state_dir=self.state,
            checkpoint=checkpoint,
            **more,
        )

    def mounted(self) -> list[Path]:
        """Every mount below the directory."""
        return [entry.mountpoint for entry in MountTable.read().below(self.root)]

    def leftovers(self) -> list[str]:
        """What a driver that holds no volume must not leave: mounts, targets, mount points, records."""
        found = [f"mount {path}" for path in self.mounted()]
        found += [f"target {path}" for path in self.pods.glob("*/volumes/kubernetes.io~csi/*/*")]
        for directory in (self.mounts, self.state / "volumes"):
            if directory.is_dir():
                found += [str(path) for path in directory.iterdir()]
        return found

    def clear(self) -> None:
        """After a test, whatever it did."""
        for path in self.mounted():
            device.unmount(path, lazy=True)


class Kubelet:
    """Calls the socket as kubelet does."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self.node = rpc.NodeStub(self._channel)
        self.identity = rpc.IdentityStub(self._channel)
        self.controller = rpc.ControllerStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def publish(self, target: Path, *, volume_id: str = "csi-1", timeout_s: float = 30, **changes: object) -> None:
        self.node.NodePublishVolume(publish_request(target, volume_id=volume_id, **changes), timeout=timeout_s)

    def unpublish(self, target: Path, *, volume_id: str = "csi-1", timeout_s: float = 30) -> None:
        request = pb.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        self.node.NodeUnpublishVolume(request, timeout=timeout_s)

    def stats(self, path: Path | str, *, volume_id: str = "csi-1") -> pb.NodeGetVolumeStatsResponse:
        request = pb.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))
        return self.node.NodeGetVolumeStats(request, timeout=10)


def capability(
    mode: int = pb.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY, *, flags: Sequence[str] = ()
) -> pb.VolumeCapability:
    return pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(mount_flags=flags), access_mode=pb.VolumeCapability.AccessMode(mode=mode)
    )


def publish_request(
    target: Path | str,
    *,
    volume_id: str = "csi-1",
    reference: str = REFERENCE,
    attributes: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    readonly: bool = True,
    volume_capability: pb.VolumeCapability | None = None,
) -> pb.NodePublishVolumeRequest:
    return pb.NodePublishVolumeRequest(
        volume_id=volume_id,
        target_path=str(target),
        volume_capability=volume_capability or capability(),
        readonly=readonly,
        secrets=secrets,
        volume_context={
            "csi.storage.k8s.io/ephemeral": "true",
            "csi.storage.k8s.io/pod.name": "reader",
            "csi.storage.k8s.io/pod.namespace": "default",
            "csi.weightless.dev/reference": reference,
            **(attributes or {}),
        },
    )


@contextmanager
def running(
    place: Place, manager: Manager, provisioner: Provisioner | None = None, **settings: object
) -> Iterator[tuple[NodePlugin, Kubelet]]:
    plugin = NodePlugin(place.settings(**settings), manager, provisioner)  # type: ignore[arg-type]
    plugin.start()
    try:
        with Kubelet(place.socket) as kubelet:
            yield plugin, kubelet
    finally:
        plugin.stop()


def create_request(name: str = "pvc-1", **parameters: str) -> pb.CreateVolumeRequest:
    """As external-provisioner sends it with --extra-create-metadata."""
    return pb.CreateVolumeRequest(
        name=name,
        capacity_range=pb.CapacityRange(required_bytes=1 << 30),
        volume_capabilities=[capability()],
        parameters={
            "reference": REFERENCE,
            "csi.storage.k8s.io/pvc/name": "llama",
            "csi.storage.k8s.io/pvc/namespace": "team-a",
            "csi.storage.k8s.io/pv/name": name,
            **parameters,
        },
    )


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def details_of(error: grpc.RpcError) -> str:
    assert isinstance(error, grpc.Call)
    return error.details() or ""
