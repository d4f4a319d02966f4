"""The controller by itself, over its socket: what it makes of claims, what it says when it cannot, who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from csi import attributes
from csi.controller_plugin import ControllerPlugin, ControllerSettings
from csi.pb import csi_pb2 as pb
from csi.pinning import MountingPinner
from csi.provisioner import Provisioner
from csi.slots import MAX_SLOW_CALLS
from csi.templates import Claim
from fuse.errors import (
    Cancelled,
    Forbidden,
    InvalidConfig,
    NotAModel,
    NotFound,
    Unauthenticated,
    Unavailable,
    WeightlessError,
)
from fuse.registry.access import Access
from tests.csi.fakes import PASSWORD, PRIVATE, REFERENCE, FakeAccess, FakeManager
from tests.csi.harness import Kubelet, Place, capability, code_of, create_request, details_of
from tests.support.waiting import until

DIGEST = f"sha256:{'1' * 64}"
REFERENCE_KEY = "csi.weightless.dev/reference"


class FakePinner:
    """A registry that knows every reference, until it is told otherwise."""

    def __init__(self) -> None:
        self.digest = DIGEST
        self.error: WeightlessError | None = None
        self.asked: list[tuple[str, str]] = []
        """References, and the password that came with each."""
        self.gate = threading.Event()
        self.gate.set()
        self.good = ""
        """The one password that is taken, if there is one."""

    def pin(self, reference: str, access: Access, cancel: threading.Event) -> str:
        credential = access.endpoints[0].credential
        self.asked.append((reference, credential.password if credential else ""))
        while not self.gate.wait(0.01):
            if cancel.is_set():
                raise Cancelled("given up")
        if self.error is not None:
            raise self.error
        if self.good and (credential is None or credential.password != self.good):
            raise Unauthenticated("not accepted", where=reference)
        return f"{reference.partition('@')[0]}@{self.digest}"


class Claims:
    def __init__(self) -> None:
        self.by_claim: dict[Claim, Mapping[str, str]] = {}

    def annotations(self, claim: Claim) -> Mapping[str, str]:
        return self.by_claim[claim]


@pytest.fixture
def pinner() -> FakePinner:
    return FakePinner()


@pytest.fixture
def claims() -> Claims:
    return Claims()


@contextmanager
def controlling(
    place: Place, pinner: FakePinner, claims: Claims | None = None, access: FakeAccess | None = None
) -> Iterator[Kubelet]:
    provisioner = Provisioner(
        pinner=pinner, access=access or FakeAccess(), annotations=(claims or Claims()).annotations
    )
    plugin = ControllerPlugin(ControllerSettings(endpoint=f"unix://{place.root}/c/csi.sock"), provisioner)
    plugin.start()
    try:
        with Kubelet(place.root / "c" / "csi.sock") as client:
            yield client
    finally:
        pinner.gate.set()
        plugin.stop()


@pytest.fixture
def client(place: Place, pinner: FakePinner, claims: Claims) -> Iterator[Kubelet]:
    with controlling(place, pinner, claims) as found:
        yield found


def create(client: Kubelet, name: str = "pvc-1", timeout_s: float = 20, **parameters: str) -> pb.Volume:
    return client.controller.CreateVolume(create_request(name, **parameters), timeout=timeout_s).volume


# ---- what a claim gets ----


def test_a_claim_keeps_the_digest_that_its_tag_had(client: Kubelet, pinner: FakePinner) -> None:
    """The context has the reference with the digest; the volume keeps its id when the tag moves."""
    first = create(client)
    pinner.digest = f"sha256:{'2' * 64}"
    second = create(client)

    assert first.volume_context[REFERENCE_KEY] == f"{REFERENCE}@{DIGEST}"
    assert second.volume_context[REFERENCE_KEY] == f"{REFERENCE}@{pinner.digest}"
    assert first.volume_id == second.volume_id


def test_a_context_is_what_a_node_understands(client: Kubelet) -> None:
    """All parameters come through, and nothing of Kubernetes' own."""
    patterns = '["*.onnx"]'
    volume = create(client, prefetch="none", **{"csi.weightless.dev/exclude-file-patterns": patterns})

    parsed = attributes.parse(volume.volume_context)
    assert (parsed.prefetch, parsed.view.exclude) == ("none", ("*.onnx",))
    assert all(key.startswith(attributes.PREFIX) for key in volume.volume_context)
    assert not volume.accessible_topology
    assert not volume.HasField("content_source")


def test_a_claim_names_its_model(client: Kubelet, pinner: FakePinner, claims: Claims) -> None:
    """By an annotation, as far as the StorageClass lets it."""
    claims.by_claim[Claim("team-a", "llama")] = {"example.com/model": "tiny:v2"}
    create(client, reference="registry.example.com/models/${pvc.annotations['example.com/model']}")
    assert pinner.asked == [("registry.example.com/models/tiny:v2", "")]


def test_an_annotation_leads_nowhere_else(client: Kubelet, pinner: FakePinner, claims: Claims) -> None:
    """Neither up the path nor to another registry."""
    claims.by_claim[Claim("team-a", "llama")] = {"model": "../../secret:v1"}
    with pytest.raises(grpc.RpcError) as caught:
        create(client, reference="registry.example.com/models/${pvc.annotations['model']}")
    assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
    assert pinner.asked == []


def test_secrets_are_shown_to_the_registry_only(client: Kubelet, pinner: FakePinner) -> None:
    """They are used, and are in neither the volume nor an error."""
    request = create_request(reference=PRIVATE)
    request.secrets.update({"username": "robot", "password": PASSWORD})
    volume = client.controller.CreateVolume(request).volume
    assert pinner.asked == [(PRIVATE, PASSWORD)]
    assert PASSWORD not in str(volume)

    pinner.error = Forbidden(f"robot:{PASSWORD} may not", where=PRIVATE)
    with pytest.raises(grpc.RpcError) as caught:
        client.controller.CreateVolume(request)
    assert PASSWORD not in details_of(caught.value)


def test_credentials_that_were_remembered_are_looked_up_again_before_they_are_refused(
    place: Place, pinner: FakePinner
) -> None:
    """As for a publish: what a provider said an hour ago may be out of date."""
    access = FakeAccess()
    access.ambient, access.remembered, access.fresh_password, pinner.good = "stale", True, "new", "new"
    with controlling(place, pinner, access=access) as client:
        create(client)
    assert pinner.asked == [(REFERENCE, "stale"), (REFERENCE, "new")]


@pytest.mark.parametrize("secret", [True, False])
def test_a_refusal_says_where_a_claims_secret_is_named(client: Kubelet, pinner: FakePinner, *, secret: bool) -> None:
    """Not in nodePublishSecretRef, which is for nodes."""
    pinner.error = Forbidden("not for you")
    request = create_request()
    if secret:
        request.secrets.update({"username": "robot", "password": PASSWORD})
    with pytest.raises(grpc.RpcError) as caught:
        client.controller.CreateVolume(request)
    assert "StorageClass parameter csi.storage.k8s.io/provisioner-secret-name" in details_of(caught.value)
    assert "nodePublishSecretRef" not in details_of(caught.value)


def test_a_context_that_no_node_would_take_is_refused(client: Kubelet) -> None:
    """4 KiB, with the digest that was not there when it was written."""
    patterns = f'["{"x" * 3950}"]'
    with pytest.raises(grpc.RpcError) as caught:
        create(client, **{"exclude-file-patterns": patterns})
    assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
    assert "4 KiB" in details_of(caught.value)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no answer"), grpc.StatusCode.UNAVAILABLE),
        (NotFound("no such tag"), grpc.StatusCode.NOT_FOUND),
        (Forbidden("not for you"), grpc.StatusCode.PERMISSION_DENIED),
        (NotAModel("a container image"), grpc.StatusCode.FAILED_PRECONDITION),
        (InvalidConfig("no right to read claims"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
    ids=lambda value: value.kind if isinstance(value, WeightlessError) else "",
)
def test_what_the_registry_says_decides_the_code(
    client: Kubelet, pinner: FakePinner, error: WeightlessError, code: grpc.StatusCode
) -> None:
    """Both for a creation and for a question about a volume by hand."""
    pinner.error = error
    with pytest.raises(grpc.RpcError) as caught:
        create(client)
    assert code_of(caught.value) is code
    question = pb.ValidateVolumeCapabilitiesRequest(
        volume_id="by-hand", volume_capabilities=[capability()], volume_context={"reference": REFERENCE}
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.controller.ValidateVolumeCapabilities(question)
    assert code_of(caught.value) is code


def test_what_is_confirmed_is_repeated(client: Kubelet) -> None:
    """Context, capabilities and parameters; what cannot be given is answered with a reason."""
    volume = create(client)
    question = pb.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id,
        volume_capabilities=[capability()],
        volume_context=volume.volume_context,
        parameters={"reference": REFERENCE},
    )
    confirmed = client.controller.ValidateVolumeCapabilities(question).confirmed
    assert dict(confirmed.volume_context) == dict(volume.volume_context)
    assert dict(confirmed.parameters) == {"reference": REFERENCE}
    assert list(confirmed.volume_capabilities) == [capability()]

    question.volume_capabilities[0].block.SetInParent()
    refused = client.controller.ValidateVolumeCapabilities(question)
    assert not refused.HasField("confirmed")
    assert "block device" in refused.message


# ---- at once ----


def test_a_creation_goes_on_without_its_caller(client: Kubelet, pinner: FakePinner) -> None:
    """Cut off by external-provisioner's time limit and asked for again: the registry is asked once."""
    pinner.gate.clear()
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            create(client, timeout_s=0.2)
        assert code_of(caught.value) in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
    assert len(pinner.asked) == 1
    pinner.gate.set()
    assert create(client).volume_context[REFERENCE_KEY].endswith(DIGEST)


def test_an_equal_creation_joins(client: Kubelet, pinner: FakePinner) -> None:
    """Two at once are one, with one answer."""
    pinner.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(create, client) for _ in range(2)]
        until(lambda: pinner.asked, "the registry is asked")
        with pytest.raises(grpc.RpcError) as caught:
            create(client, prefetch="none")
        assert code_of(caught.value) is grpc.StatusCode.ABORTED
        pinner.gate.set()
        first, second = (each.result(20) for each in both)
    assert first == second


def test_other_names_do_not_wait(client: Kubelet, pinner: FakePinner) -> None:
    """Each is asked for by itself; beyond the slots a call is told to come again, and a probe is answered."""
    pinner.gate.clear()
    with ThreadPoolExecutor(MAX_SLOW_CALLS) as pool:
        waiting = [pool.submit(create, client, f"pvc-{number}") for number in range(MAX_SLOW_CALLS)]
        until(lambda: len(pinner.asked) == MAX_SLOW_CALLS, "all are asked for")
        with pytest.raises(grpc.RpcError) as caught:
            create(client, "one-more")
        assert code_of(caught.value) is grpc.StatusCode.ABORTED
        assert client.identity.Probe(pb.ProbeRequest(), timeout=5).ready.value
        pinner.gate.set()
        assert len({each.result(20).volume_id for each in waiting}) == MAX_SLOW_CALLS


def test_ending_gives_up_what_is_under_way(place: Place, pinner: FakePinner) -> None:
    """ABORTED, and the controller ends at once."""
    pinner.gate.clear()
    provisioner = Provisioner(pinner=pinner, access=FakeAccess(), annotations=Claims().annotations)
    question = pb.ValidateVolumeCapabilitiesRequest(
        volume_id="by-hand", volume_capabilities=[capability()], volume_context={"reference": REFERENCE}
    )
    plugin = ControllerPlugin(ControllerSettings(endpoint=f"unix://{place.root}/c/csi.sock"), provisioner)
    plugin.start()
    with Kubelet(place.root / "c" / "csi.sock") as client, ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(create, client),
            pool.submit(client.controller.ValidateVolumeCapabilities, question, timeout=20),
        ]
        until(lambda: len(pinner.asked) == 2, "the registry is asked")
        try:
            plugin.stop()
        finally:
            pinner.gate.set()
        for each in waiting:
            with pytest.raises(grpc.RpcError) as caught:
                each.result(20)
            assert code_of(caught.value) is grpc.StatusCode.ABORTED


# ---- beside a node plugin ----


def test_beside_a_node_plugin_the_data_plane_is_asked(manager: FakeManager) -> None:
    """The privileged process parses nothing from a registry itself."""
    pinned = MountingPinner(manager).pin(REFERENCE, FakeAccess().admit(REFERENCE).access, threading.Event())
    assert pinned.startswith(f"{REFERENCE}@sha256:")
    assert manager.resolved == [(REFERENCE, False)]


def test_a_controller_serves_no_node(client: Kubelet) -> None:
    """Who is asked which services the driver has says the same everywhere, since it is of one version."""
    with pytest.raises(grpc.RpcError) as caught:
        client.node.NodeGetInfo(pb.NodeGetInfoRequest())
    assert code_of(caught.value) is grpc.StatusCode.UNIMPLEMENTED
    assert len(client.identity.GetPluginCapabilities(pb.GetPluginCapabilitiesRequest()).capabilities) == 1
