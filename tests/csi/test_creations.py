"""Requests of the Controller service as values, and references that a claim completes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from csi import creations
from csi.pb import csi_pb2 as pb
from csi.templates import Claim, claim_of, expand
from fuse.errors import InvalidRequest, NotFound
from tests.csi.fakes import REFERENCE
from tests.csi.harness import capability, create_request

CLAIM = Claim("team-a", "llama")
BLOCK = pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume(), access_mode=pb.VolumeCapability.AccessMode(mode=1))


# ---- templates ----


@pytest.mark.parametrize(
    ("template", "reference"),
    [
        ("registry.example.com/models/llama:v1", "registry.example.com/models/llama:v1"),
        ("registry.example.com/${pvc.namespace}/${pvc.name}:v1", "registry.example.com/team-a/llama:v1"),
        ("registry.example.com/models/${pvc.annotations['example.com/model']}", "registry.example.com/models/tiny:v2"),
        ("${pvc.annotations['csi.weightless.dev/reference']}", "elsewhere.example.com/a/b:c"),
    ],
)
def test_a_claim_completes_the_reference(template: str, reference: str) -> None:
    """Its names and annotations, with the words that external-provisioner has for secrets."""
    annotations = {"example.com/model": "tiny:v2", "csi.weightless.dev/reference": "elsewhere.example.com/a/b:c"}
    assert expand(template, CLAIM, lambda _: annotations) == reference


def test_the_cluster_is_asked_only_for_annotations() -> None:
    """A reference without them needs no right to read claims."""

    def forbidden(_: Claim) -> Mapping[str, str]:
        raise AssertionError

    expand(REFERENCE, None, forbidden)
    expand("registry.example.com/${pvc.namespace}/${pvc.name}", CLAIM, forbidden)


@pytest.mark.parametrize(
    ("template", "claim", "words"),
    [
        ("registry.example.com/models/${pvc.uid}", CLAIM, "is not known"),
        ("registry.example.com/models/${pvc.annotations[model]}", CLAIM, "is not known"),
        ("registry.example.com/models/${pvc.annotations['other']}", CLAIM, "no annotation 'other'"),
        ("registry.example.com/models/${pvc.name}", None, "extra-create-metadata"),
        # `.evil.org/x` would make it another registry's.
        ("registry.example.com${pvc.annotations['suffix']}/models", CLAIM, "registry's name"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, claim: Claim | None, words: str) -> None:
    """Said to whoever wrote the StorageClass or the claim; no word stays in the reference."""
    with pytest.raises(InvalidRequest) as caught:
        expand(template, claim, lambda _: {"suffix": ".evil.org/x"})
    assert words in str(caught.value)


def test_the_claim_is_what_external_provisioner_tells() -> None:
    """Both names, or none."""
    assert claim_of(create_request().parameters) == CLAIM
    assert claim_of({"csi.storage.k8s.io/pvc/name": "llama"}) is None


# ---- requests ----


def test_parameters_are_volume_attributes() -> None:
    """The same names; what Kubernetes adds is nobody's attribute."""
    request = creations.create(create_request(**{"csi.weightless.dev/prefetch": "none"}))
    assert request.parameters == {"reference": REFERENCE, "prefetch": "none"}
    assert request.claim == CLAIM


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "name: it is missing"),
        ({"name": "a\x0bb"}, "control characters"),
        ({"name": "n" * 1025}, "longer than"),
        ({"volume_capabilities": []}, "volume_capabilities"),
        ({"volume_capabilities": [capability(), BLOCK]}, "not a block device"),
        ({"volume_capabilities": [pb.VolumeCapability()]}, "access type is missing"),
        ({"volume_capabilities": [capability(8)]}, "access mode 8 is not known"),
        ({"capacity_range": pb.CapacityRange(required_bytes=-1)}, "capacity_range"),
        ({"capacity_range": pb.CapacityRange(required_bytes=2, limit_bytes=1)}, "capacity_range"),
        ({"parameters": {}}, "no reference"),
        ({"parameters": {"reference": ""}}, "no reference"),
        ({"parameters": {"reference": REFERENCE, "size": "big"}}, "StorageClass parameters: unknown attributes 'size'"),
        ({"mutable_parameters": {"prefetch": "none"}}, "mutable_parameters"),
        (
            {
                "volume_content_source": pb.VolumeContentSource(
                    volume=pb.VolumeContentSource.VolumeSource(volume_id="other")
                )
            },
            "no other volume",
        ),
        ({"secrets": {"key": "canary-hunter2"}}, "unknown keys 'key'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_creation_that_cannot_be_is_refused(changes: dict, words: str) -> None:
    """What is wrong is named, and no secret is."""
    request = create_request()
    for name, value in changes.items():
        request.ClearField(name)
        request.MergeFrom(pb.CreateVolumeRequest(**{name: value}))
    with pytest.raises(InvalidRequest) as caught:
        creations.create(request)
    assert words in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("mode", pb.VolumeCapability.AccessMode.Mode.values()[1:])
def test_every_access_mode_is_given(mode: int) -> None:
    """Callers ask for writers by default; what they get is read-only."""
    request = create_request()
    request.volume_capabilities[0].access_mode.mode = mode
    assert creations.create(request).name == "pvc-1"


@pytest.mark.parametrize("name", ["ü" * 64, "two words", "tab\tand\r\nline", "../../etc"])
def test_a_name_is_any_text_that_csi_lets_it_be(name: str) -> None:
    """White space, too; no id is longer or stranger for it."""
    request = creations.create(create_request(name))
    assert name == request.name
    assert creations.volume_id("pvc-1", {}) != creations.volume_id(name, {})
    assert creations.volume_id(name, {}).isascii()


def test_topology_is_no_obstacle() -> None:
    """A registry is everywhere."""
    request = create_request()
    request.accessibility_requirements.requisite.add().segments["zone"] = "a"
    assert creations.create(request).name == "pvc-1"


def test_an_id_is_short_and_the_same_for_the_same() -> None:
    """Of name and parameters, whatever the order; CSI wants at most 128 bytes."""
    values = {"reference": REFERENCE, "prefetch": "none"}
    made = creations.volume_id("pvc-1", values)
    assert made == creations.volume_id("pvc-1", dict(reversed(values.items())))
    assert len({made, creations.volume_id("pvc-2", values), creations.volume_id("pvc-1", {"reference": "x"})}) == 3
    assert len(made) <= 128
    request = pb.ValidateVolumeCapabilitiesRequest(volume_id=made, volume_capabilities=[capability()])
    assert creations.validate(request).refusal == ""


def test_a_volume_by_hand_is_known_by_its_context() -> None:
    """An id that is not ours says nothing; what the volume would show does."""
    request = pb.ValidateVolumeCapabilitiesRequest(volume_id="by-hand", volume_capabilities=[capability()])
    with pytest.raises(NotFound):
        creations.validate(request)
    request.volume_context["csi.weightless.dev/reference"] = REFERENCE
    assert creations.validate(request).context == {"reference": REFERENCE}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"volume_capabilities": [BLOCK]}, "not a block device"),
        ({"parameters": {"size": "big"}}, "unknown attributes"),
        ({"mutable_parameters": {"a": "b"}}, "no mutable parameters"),
        ({"volume_capabilities": [capability(8)]}, "access mode 8 is not known"),
    ],
)
def test_what_cannot_be_given_is_no_error_of_the_question(changes: dict, words: str) -> None:
    """CSI: an answer without `confirmed`, and why."""
    request = pb.ValidateVolumeCapabilitiesRequest(
        **{"volume_id": creations.volume_id("a", {}), "volume_capabilities": [capability()], **changes}
    )
    assert words in creations.validate(request).refusal


def test_a_question_that_says_too_little_is_one() -> None:
    """No access mode: there is nothing to confirm or refuse."""
    incomplete = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume())
    request = pb.ValidateVolumeCapabilitiesRequest(volume_id="wl-x", volume_capabilities=[incomplete])
    with pytest.raises(InvalidRequest):
        creations.validate(request)
