"""What whoever names a cluster must say, and what is done to a cluster that has something already. These need no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.installation import installed
from tests.cluster.kubernetes import Kubernetes, Object
from tests.cluster.settings import Settings

GIVEN = {"KUBECONFIG": "/root/.kube/config", "WEIGHTLESS_CLUSTER_MODEL": "registry.example.com/models/minilm:v1"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sums").write_text("0123  ./config.json\n")
    (tmp_path / "values.yaml").write_text("{}")
    return {"WEIGHTLESS_CLUSTER_SUMS": f"{tmp_path}/sums", "WEIGHTLESS_CLUSTER_VALUES": f"{tmp_path}/values.yaml"}


def test_a_public_model_and_values_are_enough(files: dict[str, str]) -> None:
    """All else has a default, or is for what not every cluster has."""
    settings = Settings.from_environment(GIVEN | files)
    assert (settings.sums, settings.docker_config, settings.account) == ("0123  ./config.json\n", "", {})
    assert not settings.clean
    assert not settings.here


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"WEIGHTLESS_CLUSTER_SUMS": None}, "please also set WEIGHTLESS_CLUSTER_SUMS"),
        (
            {"WEIGHTLESS_CLUSTER_VALUES": None},
            "WEIGHTLESS_CLUSTER_VALUES or WEIGHTLESS_CLUSTER_KUSTOMIZATION, one of them",
        ),
        ({"WEIGHTLESS_CLUSTER_KUSTOMIZATION": "/"}, "one of them"),
        ({"WEIGHTLESS_CLUSTER_VALUES": "/no/such.yaml"}, "WEIGHTLESS_CLUSTER_VALUES: there is no /no/such.yaml"),
    ],
)
def test_what_is_missing_is_named(changed: dict[str, str | None], complaint: str, files: dict[str, str]) -> None:
    """Before anything is done, by the variable."""
    environment = {name: value for name, value in {**GIVEN, **files, **changed}.items() if value is not None}
    with pytest.raises(SystemExit, match=complaint):
        Settings.from_environment(environment)


class _There:
    """An installation in a cluster that has one."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self.kubernetes = kubernetes
        self.done: list[str] = []

    def objects(self) -> Sequence[Object]:
        return [{"kind": "Namespace"}]

    def install(self) -> None:
        self.done.append("install")

    def uninstall(self) -> None:
        self.done.append("uninstall")


def test_what_is_there_is_neither_changed_nor_removed(tmp_path: Path) -> None:
    """Where kubectl finds one of the objects, nothing is installed, and so nothing uninstalled."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho namespace/weightless\n")
    kubectl.chmod(0o755)
    there = _There(Kubernetes(kubectl, Path("/dev/null")))
    with pytest.raises(AssertionError, match="there already, so not touched: namespace/weightless"), installed(there):
        pass
    assert there.done == []
