"""csi-sanity's specs by their own names and in their own order, in Python: for machines without Go.

Those that apply to what this plugin claims, with both services in one process and the real data plane behind them. The program
itself is in test_sanity_program.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from csi.pb import csi_pb2 as pb
from csi.pinning import MountingPinner
from csi.provisioner import Provisioner
from tests.csi.harness import Kubelet, Place, capability, code_of, running
from tests.csi.real import access, end_processes, model_registry, real_manager

pytestmark = pytest.mark.kernel

WRITER = pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
UNKNOWN_ID = "fake-vol-id-0123456789"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("k"))
    yield made
    end_processes(made)
    made.clear()


@pytest.fixture(scope="module")
def kubelet(place: Place) -> Iterator[Kubelet]:
    manager = real_manager(place)
    reader = access(place)
    provisioner = Provisioner(pinner=MountingPinner(manager), access=reader, annotations=lambda _: {})
    with running(place, manager, provisioner, access=reader) as (_, client):
        yield client
    assert place.leftovers() == []


def fails_with(code: grpc.StatusCode, call: object, request: object) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)  # type: ignore[operator]
    assert code_of(caught.value) is code


def creation(reference: str, name: str, **changes: object) -> pb.CreateVolumeRequest:
    """As the program asks."""
    wanted = {"volume_capabilities": [capability(WRITER)], "parameters": {"reference": reference}, **changes}
    return pb.CreateVolumeRequest(name=name, **wanted)  # type: ignore[arg-type]


def created(kubelet: Kubelet, reference: str, name: str, **changes: object) -> pb.Volume:
    return kubelet.controller.CreateVolume(creation(reference, name, **changes), timeout=30).volume


class TestControllerService:
    def test_controller_get_capabilities_should_return_appropriate_capabilities(self, kubelet: Kubelet) -> None:
        """Volumes are made and deleted; nothing is attached, listed, expanded or copied."""
        answer = kubelet.controller.ControllerGetCapabilities(pb.ControllerGetCapabilitiesRequest())
        kinds = [entry.rpc.type for entry in answer.capabilities]
        assert kinds == [pb.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME]

    def test_create_volume_should_fail_when_no_name_is_provided(self, kubelet: Kubelet, reference: str) -> None:
        """INVALID_ARGUMENT."""
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.controller.CreateVolume, creation(reference, ""))

    def test_create_volume_should_fail_when_no_volume_capabilities_are_provided(
        self, kubelet: Kubelet, reference: str
    ) -> None:
        """INVALID_ARGUMENT."""
        request = creation(reference, "no-capabilities", volume_capabilities=[])
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.controller.CreateVolume, request)

    @pytest.mark.parametrize("size", [0, 1 << 30], ids=["NoCapacity", "WithCapacity 1Gi"])
    def test_create_volume_should_return_appropriate_values_single_node_writer(
        self, kubelet: Kubelet, reference: str, size: int
    ) -> None:
        """An id; a capacity of what was asked for, or none."""
        volume = created(kubelet, reference, "sized", capacity_range=pb.CapacityRange(required_bytes=size))
        assert volume.volume_id
        assert volume.capacity_bytes == 0

    def test_create_volume_should_not_fail_with_already_existing_name_and_same_capacity(
        self, kubelet: Kubelet, reference: str
    ) -> None:
        """The same volume again."""
        size = pb.CapacityRange(required_bytes=1 << 30)
        first, second = (created(kubelet, reference, "twice", capacity_range=size) for _ in range(2))
        assert first == second

    def test_create_volume_should_not_fail_with_maximum_length_name(self, kubelet: Kubelet, reference: str) -> None:
        """128 characters; the id stays within CSI's 128 bytes."""
        assert 0 < len(created(kubelet, reference, "n" * 128).volume_id) <= 128

    def test_delete_volume_should_fail_when_no_volume_id_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.controller.DeleteVolume, pb.DeleteVolumeRequest())

    def test_delete_volume_should_succeed_when_an_invalid_volume_id_is_used(self, kubelet: Kubelet) -> None:
        """What is not there is deleted."""
        kubelet.controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id="reallyfakevolumeid"))

    def test_delete_volume_should_return_appropriate_values(self, kubelet: Kubelet, reference: str) -> None:
        """OK, as often as it is asked."""
        volume = created(kubelet, reference, "deleted")
        for _ in range(2):
            kubelet.controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id=volume.volume_id))

    def test_validate_volume_capabilities_should_fail_when_no_volume_id_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        request = pb.ValidateVolumeCapabilitiesRequest()
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.controller.ValidateVolumeCapabilities, request)

    def test_validate_volume_capabilities_should_fail_when_no_volume_capabilities_are_provided(
        self, kubelet: Kubelet, reference: str
    ) -> None:
        """INVALID_ARGUMENT."""
        volume = created(kubelet, reference, "validated")
        request = pb.ValidateVolumeCapabilitiesRequest(volume_id=volume.volume_id)
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.controller.ValidateVolumeCapabilities, request)

    def test_validate_volume_capabilities_should_return_appropriate_values(
        self, kubelet: Kubelet, reference: str
    ) -> None:
        """What is confirmed is said again."""
        volume = created(kubelet, reference, "validated")
        request = pb.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id, volume_capabilities=[capability(WRITER)]
        )
        answer = kubelet.controller.ValidateVolumeCapabilities(request)
        assert list(answer.confirmed.volume_capabilities) == [capability(WRITER)]

    def test_validate_volume_capabilities_should_fail_when_the_requested_volume_does_not_exist(
        self, kubelet: Kubelet
    ) -> None:
        """NOT_FOUND."""
        request = pb.ValidateVolumeCapabilitiesRequest(volume_id=UNKNOWN_ID, volume_capabilities=[capability(WRITER)])
        fails_with(grpc.StatusCode.NOT_FOUND, kubelet.controller.ValidateVolumeCapabilities, request)


class TestIdentityService:
    def test_get_plugin_capabilities_should_return_appropriate_capabilities(self, kubelet: Kubelet) -> None:
        """There is a Controller service, and nothing else that could be claimed."""
        answer = kubelet.identity.GetPluginCapabilities(pb.GetPluginCapabilitiesRequest())
        kinds = [entry.service.type for entry in answer.capabilities]
        assert kinds == [pb.PluginCapability.Service.CONTROLLER_SERVICE]

    def test_probe_should_return_appropriate_information(self, kubelet: Kubelet) -> None:
        """Ready."""
        assert kubelet.identity.Probe(pb.ProbeRequest()).ready.value

    def test_get_plugin_info_should_return_appropriate_information(self, kubelet: Kubelet) -> None:
        """A name of at most 63 characters that begins and ends with a letter; a version."""
        answer = kubelet.identity.GetPluginInfo(pb.GetPluginInfoRequest())
        assert re.fullmatch(r"[a-zA-Z][A-Za-z0-9-._]{0,61}[a-zA-Z]", answer.name)
        assert answer.vendor_version


class TestNodeService:
    def test_node_get_capabilities_should_return_appropriate_capabilities(self, kubelet: Kubelet) -> None:
        """What is claimed is what is there: no staging, no expansion."""
        answer = kubelet.node.NodeGetCapabilities(pb.NodeGetCapabilitiesRequest())
        kinds = {entry.rpc.type for entry in answer.capabilities}
        assert kinds == {
            pb.NodeServiceCapability.RPC.GET_VOLUME_STATS,
            pb.NodeServiceCapability.RPC.VOLUME_CONDITION,
        }

    def test_node_get_info_should_return_appropriate_values(self, kubelet: Kubelet) -> None:
        """A node id; no negative limit."""
        answer = kubelet.node.NodeGetInfo(pb.NodeGetInfoRequest())
        assert answer.node_id == "node-a"
        assert answer.max_volumes_per_node >= 0

    def test_node_publish_volume_should_fail_when_no_volume_id_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        fails_with(
            grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodePublishVolume, pb.NodePublishVolumeRequest(secrets={})
        )

    def test_node_publish_volume_should_fail_when_no_target_path_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodePublishVolumeRequest(volume_id=UNKNOWN_ID)
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodePublishVolume, request)

    def test_node_publish_volume_should_fail_when_no_volume_capability_is_provided(
        self, kubelet: Kubelet, place: Place
    ) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodePublishVolumeRequest(volume_id=UNKNOWN_ID, target_path=str(place.target()))
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodePublishVolume, request)

    def test_node_unpublish_volume_should_fail_when_no_volume_id_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeUnpublishVolume, pb.NodeUnpublishVolumeRequest())

    def test_node_unpublish_volume_should_fail_when_no_target_path_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodeUnpublishVolumeRequest(volume_id=UNKNOWN_ID)
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeUnpublishVolume, request)

    def test_node_unpublish_volume_should_remove_target_path(
        self, kubelet: Kubelet, place: Place, reference: str
    ) -> None:
        """The directory is there while published, and gone afterwards; as the program does, a writer is asked for."""
        target = place.target()
        writer = capability(WRITER)
        kubelet.publish(target, reference=reference, readonly=False, volume_capability=writer)
        assert target.exists()
        kubelet.unpublish(target)
        assert not target.exists()

    def test_node_get_volume_stats_should_fail_when_no_volume_id_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodeGetVolumeStatsRequest(volume_path="some/path")
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeGetVolumeStats, request)

    def test_node_get_volume_stats_should_fail_when_no_volume_path_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodeGetVolumeStatsRequest(volume_id=UNKNOWN_ID)
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeGetVolumeStats, request)

    def test_node_get_volume_stats_should_fail_when_volume_is_not_found(self, kubelet: Kubelet) -> None:
        """NOT_FOUND, although the path is not even absolute."""
        request = pb.NodeGetVolumeStatsRequest(volume_id=UNKNOWN_ID, volume_path="some/path")
        fails_with(grpc.StatusCode.NOT_FOUND, kubelet.node.NodeGetVolumeStats, request)

    def test_node_get_volume_stats_should_fail_when_volume_does_not_exist_on_the_specified_path(
        self, kubelet: Kubelet, place: Place, reference: str
    ) -> None:
        """NOT_FOUND for a published volume at a path where it is not."""
        target = place.target()
        kubelet.publish(target, reference=reference)
        request = pb.NodeGetVolumeStatsRequest(volume_id="csi-1", volume_path="some/path")
        fails_with(grpc.StatusCode.NOT_FOUND, kubelet.node.NodeGetVolumeStats, request)
        kubelet.unpublish(target)

    @pytest.mark.parametrize("count", [1, 10], ids=["should_work", "should_be_idempotent"])
    def test(self, kubelet: Kubelet, place: Place, reference: str, count: int) -> None:
        """A life from claim to claim: create, publish, stats, unpublish, delete, each as often."""
        target = place.target(volume="life")
        for _ in range(count):
            volume = created(kubelet, reference, "life")
        for _ in range(count):
            publish = pb.NodePublishVolumeRequest(
                volume_id=volume.volume_id,
                target_path=str(target),
                volume_capability=capability(WRITER),
                volume_context=volume.volume_context,
            )
            kubelet.node.NodePublishVolume(publish, timeout=30)
        assert (target / "config.json").exists()
        for _ in range(count):
            assert len(kubelet.stats(target, volume_id=volume.volume_id).usage) == 2
        for _ in range(count):
            kubelet.unpublish(target, volume_id=volume.volume_id)
        for _ in range(count):
            kubelet.controller.DeleteVolume(pb.DeleteVolumeRequest(volume_id=volume.volume_id))
        assert place.leftovers() == []
