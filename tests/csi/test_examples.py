"""The examples in deploy/examples: valid for Kubernetes, and understood by this plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from csi import attributes, creations
from csi.identity import DRIVER_NAME
from csi.templates import expand
from tests.csi.harness import create_request

EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "examples").glob("*.yaml"))
KUBERNETES = ("1.30", "1.34")


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.stem}-{document['kind']}")
        for path in EXAMPLES
        for document in yaml.safe_load_all(path.read_text())
    ]


def volumes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The csi volumes of a pod or PersistentVolume."""
    spec = document.get("spec", {})
    return [volume["csi"] for volume in (spec, *spec.get("volumes", ())) if "csi" in volume]


@pytest.mark.parametrize("document", documents())
def test_an_example_is_valid_for_kubernetes(document: dict[str, Any]) -> None:
    """Checked against Kubernetes' own schemas, unknown fields forbidden."""
    for version in KUBERNETES:
        kubernetes_validate.validate(document, version, strict=True)


def test_every_volume_of_the_examples_is_understood() -> None:
    """Driver name and attributes are ours, and there are inline, persistent and migrated ones."""
    found = [volume for document in documents() for volume in volumes(document.values[0])]
    assert len(found) == 3
    for volume in found:
        assert volume["driver"] == DRIVER_NAME
        assert attributes.parse(volume["volumeAttributes"]).reference.startswith("registry.example.com/")
        assert volume["readOnly"] is True


def test_every_claim_of_the_examples_gets_a_volume() -> None:
    """The class's parameters, as external-provisioner sends them, make a volume of each that a node understands."""
    found = [document.values[0] for document in documents()]
    (storage_class,) = (each for each in found if each["kind"] == "StorageClass")
    claims = [each for each in found if each["kind"] == "PersistentVolumeClaim"]
    pods = [each["spec"]["volumes"] for each in found if each["kind"] == "Pod"]
    claims += [volume["ephemeral"]["volumeClaimTemplate"] for each in pods for volume in each if "ephemeral" in volume]
    claims = [claim for claim in claims if claim["spec"]["storageClassName"] == storage_class["metadata"]["name"]]
    assert len(claims) == 2
    assert storage_class["provisioner"] == DRIVER_NAME
    # external-provisioner keeps what is its own, and takes words of the secrets' names only.
    sent = {key: text for key, text in storage_class["parameters"].items() if not key.startswith("csi.storage.k8s.io/")}
    for claim in claims:
        request = creations.create(create_request(**sent))
        annotations = claim["metadata"]["annotations"]
        reference = expand(request.parameters["reference"], request.claim, lambda _, each=annotations: each)
        assert attributes.parse({"reference": reference}).reference == "registry.example.com/models/minilm:v1"


def test_the_driver_object_names_this_driver() -> None:
    """The CSIDriver object is found by name."""
    (driver,) = (document.values[0] for document in documents() if document.values[0]["kind"] == "CSIDriver")
    assert driver["metadata"]["name"] == DRIVER_NAME
