"""csi-sanity's Identity and Node specs: the real program where Go is at hand, and the same specs, by the same names, in Python.

This version has no Controller service. So `[Controller Server]` is skipped; two Node specs that need a volume get it from a
Controller that lives in this file; and two specs skip themselves, because the plugin does not claim to be a Controller.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml

from csi.identity import Identity
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from tests.conftest import need, need_program
from tests.csi.harness import Kubelet, Place, capability, code_of, running
from tests.csi.real import access, model_registry, real_manager

pytestmark = pytest.mark.kernel

VERSION = "v5.6.0"
"""5.5 is the first that can test a plugin without a Controller; this is the first after it in the module proxy."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def kubelet(place: Place) -> Iterator[Kubelet]:
    with running(place, real_manager(place), access=access(place)) as (_, client):
        yield client


# ---- the real program ----


@pytest.fixture(scope="module")
def csi_sanity() -> Path:
    """The program, built once into the user's cache directory."""
    go = need_program("go", "golang-go")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "weightless-test" / "csi-sanity" / VERSION
    program = directory / "csi-sanity"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        module = f"github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@{VERSION}"
        environment = {**os.environ, "GOBIN": str(directory), "GOFLAGS": "-mod=mod"}
        built = subprocess.run(
            [go, "install", module], env=environment, cwd=directory, capture_output=True, text=True, check=False
        )
        need(built.returncode == 0, f"csi-sanity cannot be built: {built.stderr[-500:]}")
    return program


class StubController(rpc.ControllerServicer):
    """Makes volumes out of nothing, for the specs that insist on one: parameters become the volume context."""

    def CreateVolume(self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext) -> pb.CreateVolumeResponse:  # noqa: N802
        volume = pb.Volume(volume_id=f"vol-{request.name}"[:128], volume_context=request.parameters)
        return pb.CreateVolumeResponse(volume=volume)

    def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext) -> pb.DeleteVolumeResponse:  # noqa: N802
        return pb.DeleteVolumeResponse()

    def ControllerGetCapabilities(  # noqa: N802
        self, request: pb.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetCapabilitiesResponse:
        kind = pb.ControllerServiceCapability.RPC(type=pb.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME)
        return pb.ControllerGetCapabilitiesResponse(capabilities=[pb.ControllerServiceCapability(rpc=kind)])


@pytest.fixture
def controller(place: Place) -> Iterator[Path]:
    socket = place.root / "controller.sock"
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        rpc.add_ControllerServicer_to_server(StubController(), server)
        # The program asks every endpoint who it is.
        rpc.add_IdentityServicer_to_server(Identity(lambda: True), server)
        server.add_insecure_port(f"unix://{socket}")
        server.start()
        yield socket
        server.stop(0).wait()


# A fresh machine downloads and compiles the program first.
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_real_program_passes_every_identity_and_node_spec(
    csi_sanity: Path, place: Place, kubelet: Kubelet, controller: Path, reference: str
) -> None:
    """15 specs run and pass, with real publishes among them; nothing is left on the node."""
    parameters = place.root / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"csi.weightless.dev/reference": reference}))
    # The program makes its targets below a directory of its own: one of the shape that kubelet has.
    directory = place.kubelet / "plugins" / "kubernetes.io" / "csi"
    directory.mkdir(parents=True)
    answer = subprocess.run(
        [
            csi_sanity,
            f"--csi.endpoint=unix://{place.socket}",
            f"--csi.controllerendpoint=unix://{controller}",
            f"--csi.mountdir={directory / 'sanity'}",
            f"--csi.stagingdir={place.root / 'staging'}",
            f"--csi.testvolumeparameters={parameters}",
            r"--ginkgo.skip=\[Controller Server\]",
            "--ginkgo.no-color",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    summary = re.search(r"Ran (\d+) of \d+ Specs.*?(\d+) Passed \S+ (\d+) Failed", answer.stdout, re.DOTALL)
    assert summary is not None, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert answer.returncode == 0, answer.stdout[-6000:]
    assert [int(number) for number in summary.groups()] == [15, 15, 0]
    assert place.leftovers() == []


# ---- the port: same specs, same order ----


def fails_with(code: grpc.StatusCode, call: object, request: object) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)  # type: ignore[operator]
    assert code_of(caught.value) is code


class TestIdentityService:
    def test_get_plugin_capabilities_should_return_appropriate_capabilities(self, kubelet: Kubelet) -> None:
        """Only services and expansions that the specification knows; none in this version."""
        assert list(kubelet.identity.GetPluginCapabilities(pb.GetPluginCapabilitiesRequest()).capabilities) == []

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
        request = pb.NodePublishVolumeRequest(volume_id="fake-vol-id-0123456789")
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodePublishVolume, request)

    def test_node_publish_volume_should_fail_when_no_volume_capability_is_provided(
        self, kubelet: Kubelet, place: Place
    ) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodePublishVolumeRequest(volume_id="fake-vol-id-0123456789", target_path=str(place.target()))
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodePublishVolume, request)

    def test_node_unpublish_volume_should_fail_when_no_volume_id_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeUnpublishVolume, pb.NodeUnpublishVolumeRequest())

    def test_node_unpublish_volume_should_fail_when_no_target_path_is_provided(self, kubelet: Kubelet) -> None:
        """INVALID_ARGUMENT."""
        request = pb.NodeUnpublishVolumeRequest(volume_id="fake-vol-id-0123456789")
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeUnpublishVolume, request)

    def test_node_unpublish_volume_should_remove_target_path(
        self, kubelet: Kubelet, place: Place, reference: str
    ) -> None:
        """The directory is there while published, and gone afterwards; as the program does, a writer is asked for."""
        target = place.target()
        writer = capability(pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
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
        request = pb.NodeGetVolumeStatsRequest(volume_id="fake-vol-id-0123456789")
        fails_with(grpc.StatusCode.INVALID_ARGUMENT, kubelet.node.NodeGetVolumeStats, request)

    def test_node_get_volume_stats_should_fail_when_volume_is_not_found(self, kubelet: Kubelet) -> None:
        """NOT_FOUND, although the path is not even absolute."""
        request = pb.NodeGetVolumeStatsRequest(volume_id="fake-vol-id-0123456789", volume_path="some/path")
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
        """Publish, stats and unpublish, each as often; what the program asks of a plugin with a Controller."""
        target = place.target()
        for _ in range(count):
            kubelet.publish(target, reference=reference)
        for _ in range(count):
            assert len(kubelet.stats(target).usage) == 2
        for _ in range(count):
            kubelet.unpublish(target)
        assert place.leftovers() == []
