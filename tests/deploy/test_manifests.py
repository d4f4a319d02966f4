"""deploy/kubernetes: the chart, rendered, for those who have no Helm."""

from __future__ import annotations

import os
import subprocess

import kubernetes_validate
import pytest
import yaml

from tests.conftest import need_program
from tests.deploy.chart import ROOT, Helm

pytestmark = pytest.mark.timeout(600)

SCRIPT = ROOT / "scripts" / "render-manifests.sh"


def test_they_are_what_the_chart_says(helm: Helm) -> None:
    """Whoever changes the chart renders them again."""
    environment = {**os.environ, "PATH": f"{os.path.dirname(helm.program)}:{os.environ['PATH']}"}  # noqa: PTH120
    answer = subprocess.run([SCRIPT, "--check"], capture_output=True, text=True, check=False, env=environment)

    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(("directory", "ours"), [("", 3), ("cleanup", 2)], ids=["driver", "cleanup"])
def test_kustomize_gives_the_image_its_name(directory: str, ours: int) -> None:
    """All of it is valid, in its namespace, and no container has the name that only the rendering uses."""
    kubectl = need_program("kubectl", "kubernetes-client")
    answer = subprocess.run(
        [kubectl, "kustomize", ROOT / "deploy" / "kubernetes" / directory], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    objects = list(yaml.safe_load_all(answer.stdout))
    images = [
        container["image"]
        for each in objects
        if each["kind"] in ("DaemonSet", "Deployment")
        for container in (
            *each["spec"]["template"]["spec"].get("initContainers", ()),
            *each["spec"]["template"]["spec"]["containers"],
        )
    ]

    assert images.count("registry.example.com/weightless:0.1.0") == ours
    assert all(image.startswith(("registry.example.com/", "registry.k8s.io/sig-storage/")) for image in images)
    for each in objects:
        kubernetes_validate.validate(each, "1.34", strict=True)
    assert [each["metadata"]["name"] for each in objects if each["kind"] == "Namespace"] == ["weightless"]
    assert {each["metadata"].get("namespace", "weightless") for each in objects} == {"weightless"}
