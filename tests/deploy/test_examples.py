"""deploy/examples: what people copy is accepted by Kubernetes and by the driver, and its parts fit each other."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from csi import attributes, creations, templates
from csi.identity import DRIVER_NAME
from csi.pb import csi_pb2 as pb
from tests.deploy.chart import ROOT

EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))
KUBERNETES = ("1.27", "1.34", "1.37")


def documents() -> list[dict[str, Any]]:
    return [each for file in EXAMPLES for each in yaml.safe_load_all(file.read_text())]


def of(kind: str) -> dict[str, dict[str, Any]]:
    """By name."""
    return {each["metadata"]["name"]: each for each in documents() if each["kind"] == kind}


@pytest.mark.parametrize("version", KUBERNETES)
def test_each_is_valid_for_kubernetes(version: str) -> None:
    """With unknown fields forbidden."""
    for each in documents():
        kubernetes_validate.validate(each, version, strict=True)


def test_each_kind_of_volume_is_there_and_understood() -> None:
    """Inline, by a PersistentVolume, by a claim of a class, generic ephemeral: the driver takes what each says of the model."""
    pods, claims, volumes, classes = of("Pod"), of("PersistentVolumeClaim"), of("PersistentVolume"), of("StorageClass")
    seen = set()
    for pod in pods.values():
        for volume in pod["spec"]["volumes"]:
            if "csi" in volume:
                seen.add("inline")
                source = volume["csi"]
            elif "ephemeral" in volume:
                seen.add("ephemeral")
                assert volume["ephemeral"]["volumeClaimTemplate"]["spec"]["storageClassName"] in classes
                continue
            else:
                claim = claims[volume["persistentVolumeClaim"]["claimName"]]
                if claim["spec"]["storageClassName"]:
                    seen.add("class")
                    assert claim["spec"]["storageClassName"] in classes
                    continue
                seen.add("volume")
                bound = volumes[claim["spec"]["volumeName"]]["spec"]
                assert bound["claimRef"] == {name: claim["metadata"][name] for name in ("namespace", "name")}
                source = bound["csi"]
            assert (source["driver"], source["readOnly"]) == (DRIVER_NAME, True)
            assert attributes.parse(source["volumeAttributes"]).reference
    assert seen == {"inline", "ephemeral", "class", "volume"}


def test_the_class_makes_what_its_claims_ask_for() -> None:
    """The claim's annotation completes the reference, as the controller does it."""
    (model,) = of("StorageClass").values()
    (claim,) = (each for each in of("PersistentVolumeClaim").values() if each["spec"]["storageClassName"])
    capability = pb.VolumeCapability(
        mount=pb.VolumeCapability.MountVolume(),
        access_mode=pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY),
    )
    added = {f"csi.storage.k8s.io/pvc/{name}": claim["metadata"][name] for name in ("namespace", "name")}
    asked = creations.create(
        pb.CreateVolumeRequest(name="pvc-1", parameters=model["parameters"] | added, volume_capabilities=[capability])
    )
    reference = templates.expand(
        asked.parameters["reference"], asked.claim, lambda _claim: claim["metadata"]["annotations"]
    )

    assert model["provisioner"] == DRIVER_NAME
    assert reference == "registry.example.com/models/minilm:v1"


def test_secrets_that_are_named_are_there() -> None:
    """Each name that an example gives is that of the example's own secret, which the driver understands."""
    (secret,) = of("Secret").values()
    text = "\n".join(file.read_text() for file in EXAMPLES)
    named = {line.split(":")[1].strip() for line in text.splitlines() if "secret-name:" in line}

    assert named == {secret["metadata"]["name"]}
    assert attributes.check_secrets(secret["stringData"])
