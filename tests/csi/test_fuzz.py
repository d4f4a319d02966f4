"""Every RPC against its table of codes: requests that are made by the protocol's own description, field by field missing,
oversized or odd. Whatever comes, the answer is a code of the table with one clean sentence, and nothing is left on the node.

The same requests each time, as hypothesis derives them from the test; WEIGHTLESS_FUZZ_EXAMPLES looks further.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi.pb import csi_pb2 as pb
from csi.pinning import MountingPinner
from csi.plugin import NodePlugin
from csi.provisioner import Provisioner
from csi.templates import Claim
from csi.volumes import VolumeRecord
from fuse.errors import InvalidConfig, NoSpace
from fuse.mounting.manager import ResolvedArtifact
from tests.csi.fakes import PASSWORD, PRIVATE, REFERENCE, FakeManager
from tests.csi.harness import Kubelet, Place, capability, code_of, details_of, running
from tests.csi.real import access

pytestmark = pytest.mark.kernel

EXAMPLES: Final = int(os.environ.get("WEIGHTLESS_FUZZ_EXAMPLES", "50"))
CANARY: Final = f"canary-{PASSWORD}"
HUGE: Final = "huge"
"""In a reference: what cannot be mounted when all else is done."""
OK, INVALID, NOT_FOUND = "OK", "INVALID_ARGUMENT", "NOT_FOUND"
TABLE: Final = {
    "GetPluginInfo": {OK},
    "GetPluginCapabilities": {OK},
    "Probe": {OK},
    "CreateVolume": {OK, INVALID, NOT_FOUND, "UNAUTHENTICATED", "FAILED_PRECONDITION"},
    "DeleteVolume": {OK, INVALID},
    "ValidateVolumeCapabilities": {OK, INVALID, NOT_FOUND, "UNAUTHENTICATED"},
    "ControllerGetCapabilities": {OK},
    "NodePublishVolume": {OK, INVALID, NOT_FOUND, "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"},
    "NodeUnpublishVolume": {OK, INVALID},
    "NodeGetVolumeStats": {OK, INVALID, NOT_FOUND},
    "NodeGetCapabilities": {OK},
    "NodeGetInfo": {OK},
}
"""What each may answer here, where nobody else is at work and no registry fails; what is not named is UNIMPLEMENTED."""
METHODS: Final = [
    method
    for service in ("Identity", "Controller", "Node")
    for method in pb.DESCRIPTOR.services_by_name[service].methods
]


# ---- requests ----

ODD_TEXTS = (
    "",
    " ",
    "../../../etc",
    "a\nb",
    "a\0b",
    "x" * 129,
    "x" * 5000,
    "ü" * 600,
    "\N{RIGHT-TO-LEFT OVERRIDE}",
    "%s${x}",
)
ODD_NUMBERS = (-1, 1, (1 << 31) - 1, -(1 << 31), 99)
REFERENCES = st.sampled_from(
    (
        *[REFERENCE] * 6,
        *[PRIVATE] * 3,
        *["registry.example.com/missing/tiny:v1"] * 6,
        *[f"registry.example.com/{HUGE}/tiny:v1"] * 3,
        *["registry.example.com/${pvc.name}/${pvc.annotations['model']}"] * 3,
        f"{REFERENCE}@sha256:{'0' * 64}",
        "registry.example.com/${pvc.uid}",
        f"https://bob:{CANARY}@registry.example.com/a/b",
        *ODD_TEXTS,
    )
)
SOME = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "csi.weightless.dev/prefetch": st.sampled_from(("none", "some", "x" * 5000)),
            "verify": st.sampled_from(("lazy", "Strict")),
            "native": st.sampled_from(("off", "\0")),
            "exclude-file-patterns": st.sampled_from(('["*.bin"]', "[", '["\\u0000"]', "[" * 3000)),
            "exclude-model-weights": st.sampled_from(("true", "yes")),
        },
    ),
)
KUBERNETES = st.fixed_dictionaries(
    {},
    optional={
        "csi.storage.k8s.io/pvc/name": st.just("llama"),
        "csi.storage.k8s.io/pvc/namespace": st.just("team-a"),
        "csi.storage.k8s.io/serviceAccount.tokens": st.just(CANARY),
        "csi.storage.k8s.io/pod.name": st.sampled_from(ODD_TEXTS),
    },
)
CONTEXTS = st.builds(
    lambda ours, theirs: {**ours, **theirs},
    st.builds(lambda text, some: {"reference": text, **some}, REFERENCES, SOME),
    KUBERNETES,
)
SECRETS = st.sampled_from(
    (
        *[{}] * 3,
        *[{"username": "robot", "password": PASSWORD}] * 3,
        {"username": "robot", "password": CANARY},
        {".dockerconfigjson": f'{{"auths": "{CANARY}"}}'},
        {CANARY[:6]: CANARY},
        {"password": "x" * (1 << 20)},
    )
)
MAPS = st.dictionaries(st.sampled_from(ODD_TEXTS), st.sampled_from(ODD_TEXTS), min_size=1, max_size=2)


@dataclass
class Site:
    """Where requests are sent, and what is to be as it was afterwards."""

    place: Place
    plugin: NodePlugin
    kubelet: Kubelet
    targets: list[str] = field(default_factory=list)

    @property
    def requests(self) -> dict[str, Message]:
        """What is right, by the RPC's name: where spoiling begins."""
        target = self.targets[0]
        return {
            "CreateVolume": pb.CreateVolumeRequest(name="csi-1", volume_capabilities=[capability()]),
            "DeleteVolume": pb.DeleteVolumeRequest(volume_id="csi-1"),
            "ValidateVolumeCapabilities": pb.ValidateVolumeCapabilitiesRequest(
                volume_id="csi-1", volume_capabilities=[capability()]
            ),
            "NodePublishVolume": pb.NodePublishVolumeRequest(
                volume_id="csi-1", target_path=target, volume_capability=capability()
            ),
            "NodeUnpublishVolume": pb.NodeUnpublishVolumeRequest(volume_id="csi-1", target_path=target),
            "NodeGetVolumeStats": pb.NodeGetVolumeStatsRequest(volume_id="csi-1", volume_path=target),
        }

    def strategy(self, method: MethodDescriptor) -> st.SearchStrategy[Message]:
        base = self.requests.get(method.name) or GetMessageClass(method.input_type)()
        places = list(_places(method.input_type))

        @st.composite
        def requests(draw: st.DrawFn) -> Message:
            request = copy.deepcopy(base)
            for item in method.input_type.fields:
                if item.name in ("volume_context", "parameters"):
                    _spoil(request, (item,), draw(CONTEXTS))
                if item.name in ("target_path", "volume_path"):
                    _spoil(request, (item,), draw(st.sampled_from((*[self.targets[0]] * 20, *self.targets))))
                if item.name == "secrets":
                    _spoil(request, (item,), draw(SECRETS))
            spoilt = st.lists(st.sampled_from(places), max_size=2) if places else st.just([])
            for place in draw(st.one_of(st.just([]), spoilt)):
                _spoil(request, place, draw(self._odd(place[-1])))
            return request

        return requests()

    def _odd(self, item: FieldDescriptor) -> st.SearchStrategy[Any]:
        if _is_map(item):
            return st.one_of(st.none(), MAPS)
        if item.message_type is not None:
            return st.sampled_from((None, True))
        if item.enum_type is not None:
            return st.sampled_from((*item.enum_type.values_by_number, 99))
        if item.type == FieldDescriptor.TYPE_STRING:
            return st.sampled_from((*ODD_TEXTS, *self.targets, f"wl-{'a' * 32}"))
        return st.booleans() if item.type == FieldDescriptor.TYPE_BOOL else st.sampled_from(ODD_NUMBERS)

    def tidy(self, *, published: bool = True) -> None:
        """Unpublishes what an example has published, if anything: then nothing may be left."""
        if not published:
            assert self.place.leftovers() == []
        for record in self.volumes():
            self.kubelet.unpublish(record.target, volume_id=record.volume_id)  # type: ignore[arg-type]
        assert self.place.leftovers() == []

    def volumes(self) -> list[VolumeRecord]:
        return self.plugin._publisher.records.all()

    def resources(self) -> tuple[int, list[str]]:
        """Open descriptors, and threads but gRPC's own."""
        threads = [thread.name for thread in threading.enumerate() if not thread.name.startswith("rpc")]
        return len(os.listdir("/proc/self/fd")), sorted(threads)


def _places(descriptor: Any, above: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Every field of a message and of those in it, with the fields that lead there."""
    for item in descriptor.fields:
        yield (*above, item)
        if item.message_type is not None and not _is_map(item):
            yield from _places(item.message_type, (*above, item))


def _spoil(message: Any, place: tuple[FieldDescriptor, ...], value: Any) -> None:
    """Sets one field to `value`, or takes it away where that is None."""
    *above, last = place
    for item in above:
        inside = getattr(message, item.name)
        message = (inside[0] if inside else inside.add()) if item.is_repeated else inside
    message.ClearField(last.name)
    if value is None:
        return
    if _is_map(last):
        getattr(message, last.name).update(value)
    elif last.message_type is not None:
        getattr(message, last.name).add() if last.is_repeated else getattr(message, last.name).SetInParent()
    elif last.is_repeated:
        getattr(message, last.name).append(value)
    else:
        setattr(message, last.name, value)


def _is_map(item: FieldDescriptor) -> bool:
    return item.message_type is not None and item.message_type.GetOptions().map_entry


# ---- the test ----


class FullManager(FakeManager):
    def acquire(self, artifact: ResolvedArtifact, mountpoint: Path, **more: Any) -> str:
        if f"/{HUGE}/" in artifact.reference:
            raise NoSpace("there is no room for it", where=artifact.reference)
        return super().acquire(artifact, mountpoint, **more)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = Place(tmp_path_factory.mktemp("k"))
    manager = FullManager()

    def outside(_claim: Claim) -> dict[str, str]:
        raise InvalidConfig("there is no API server")

    reader = access(place)
    provisioner = Provisioner(pinner=MountingPinner(manager), access=reader, annotations=outside)
    elsewhere = place.pods / "link"
    elsewhere.symlink_to("/etc")
    targets = [
        str(place.target(volume="a")),
        str(place.target(volume="b")),
        f"{place.target(volume='a')}/",
        f"{place.pods}/absent/volumes/kubernetes.io~csi/a/mount",
        f"{elsewhere}/volumes/kubernetes.io~csi/a/mount",
        f"{place.pods}/p/volumes/kubernetes.io~csi/{'v' * 300}/mount",
        f"{place.pods}/../pods/p/volumes/kubernetes.io~csi/a/mount",
        f"{place.kubelet}/plugins/kubernetes.io/csi/a",
        f"{place.kubelet}/pki",
        "some/path",
    ]
    try:
        with running(place, manager, provisioner, access=reader) as (plugin, kubelet):
            found = Site(place, plugin, kubelet, targets)
            # Once, so that what is made at the first call is there.
            kubelet.publish(place.target(volume="a"))
            found.tidy()
            yield found
    finally:
        place.clear()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_answer_is_one_of_the_table(site: Site, method: MethodDescriptor) -> None:
    """No detail, no secret, no unknown code; no mount, target, record, descriptor or thread is left."""
    stub = getattr(site.kubelet, method.containing_service.name.lower())
    expected = TABLE.get(method.name, {"UNIMPLEMENTED"})
    seen: set[str] = set()

    @settings(
        max_examples=EXAMPLES * (len(expected) - 1) or 8,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(site.strategy(method))
    def ask(request: Message) -> None:
        if method.name in ("NodeGetVolumeStats", "NodeUnpublishVolume") and not site.volumes():
            site.kubelet.publish(site.targets[0])  # type: ignore[arg-type]
        code, words, metadata = OK, "none", ()
        try:
            getattr(stub, method.name)(request, timeout=10)
        except grpc.RpcError as error:
            code, words = code_of(error).name, details_of(error)
            metadata = error.trailing_metadata() or ()  # type: ignore[attr-defined]
        if method.name != "NodeGetVolumeStats":
            site.tidy(published=code == OK or method.name != "NodePublishVolume")
        seen.add(code)
        assert code in expected, (code, words)
        assert "grpc-status-details-bin" not in dict(metadata)
        assert words.isprintable()
        assert 0 < len(words) <= 2000
        assert CANARY not in words

    before = site.resources()
    ask()
    site.tidy()
    assert site.resources() == before
    assert seen >= expected & {OK, INVALID, NOT_FOUND, "RESOURCE_EXHAUSTED"}, (
        "the requests reach too little: widen them"
    )
