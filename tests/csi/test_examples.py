"""The examples in deploy/examples: valid for Kubernetes, and understood by this plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from csi import attributes
from csi.identity import DRIVER_NAME

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


def test_the_driver_object_names_this_driver() -> None:
    """The CSIDriver object is found by name."""
    (driver,) = (document.values[0] for document in documents() if document.values[0]["kind"] == "CSIDriver")
    assert driver["metadata"]["name"] == DRIVER_NAME
