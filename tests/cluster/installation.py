"""How the driver comes into a cluster and leaves it: by the manifests, or by the chart. Either way as docs/ say.

Nothing is touched that was there before, and what `installed` removes at the end is what it has installed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import yaml

from tests.cluster.kubernetes import Kubernetes, Object

NAMESPACE: Final = "weightless"

_ROOT: Final = Path(__file__).parents[2]
CHART: Final = _ROOT / "deploy" / "chart"
MANIFESTS: Final = _ROOT / "deploy" / "kubernetes"

_NAMESPACE: Final[Object] = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
}


class Installation(Protocol):
    @property
    def kubernetes(self) -> Kubernetes: ...

    def objects(self) -> Sequence[Object]:
        """All that it makes, its namespace first."""

    def install(self) -> None: ...

    def uninstall(self) -> None:
        """Also what came of half an installation. Returns when it is gone."""


@contextmanager
def installed(installation: Installation) -> Iterator[None]:
    """The driver is in the cluster in the block, though not yet ready. Where anything of it is there already, nothing is done."""
    installation.kubernetes.refuse_what_is_there(installation.objects())
    try:
        installation.install()
        yield
    finally:
        installation.uninstall()


def rendered(kubectl: Path, kustomization: Path) -> list[Object]:
    """What `kubectl apply -k` would apply."""
    text = Kubernetes(kubectl, Path("/dev/null")).run("kustomize", str(kustomization))
    return [document for document in yaml.safe_load_all(text) if document]


@dataclass(frozen=True, slots=True)
class Manifests:
    """`kubectl apply -k`, with `others` in the namespace before the driver."""

    kubernetes: Kubernetes
    kustomization: Path
    others: Sequence[Object] = ()

    def objects(self) -> list[Object]:
        made = rendered(self.kubernetes.kubectl, self.kustomization)
        # Namespaces before what lies in them.
        return [*(item for item in made if item["kind"] == "Namespace"), *self.others] + [
            item for item in made if item["kind"] != "Namespace"
        ]

    def install(self) -> None:
        objects = self.objects()
        self.kubernetes.apply([item for item in objects if item["kind"] == "Namespace"])
        self.kubernetes.apply(objects)

    def uninstall(self) -> None:
        self.kubernetes.delete(self.objects())


@dataclass(frozen=True, slots=True)
class Chart:
    """`helm install` with values of the administrator's, and `others` in the namespace before it."""

    kubernetes: Kubernetes
    helm: Path
    values: Path
    clean: bool
    """An uninstall takes from each node what the driver left there."""
    others: Sequence[Object] = ()
    _release: tuple[str, ...] = field(default=("weightless", str(CHART), "--namespace", NAMESPACE), init=False)

    def objects(self) -> list[Object]:
        options = ["--kube-version", self.kubernetes.version(), "--values", str(self.values)]
        text = self.run("template", *self._release, *options)
        return [_NAMESPACE, *self.others, *(document for document in yaml.safe_load_all(text) if document)]

    def install(self) -> None:
        self.kubernetes.apply([_NAMESPACE])
        self.kubernetes.apply(self.others)
        self.run("install", *self._release, "--values", str(self.values))

    def uninstall(self) -> None:
        try:
            if self.clean:
                self.upgrade("cleanup.enabled=true")
                cleanup = ["daemonset", "-l", "app.kubernetes.io/component=cleanup", "--timeout=2m"]
                self.kubernetes.run("rollout", "status", "-n", NAMESPACE, *cleanup, within_s=180)
        finally:
            self.run("uninstall", "weightless", "--namespace", NAMESPACE, "--ignore-not-found", "--wait")
            self.kubernetes.delete([_NAMESPACE])

    def upgrade(self, *changes: str) -> None:
        """To the same chart with other values, given as by --set."""
        settings = [part for change in changes for part in ("--set", change)]
        self.run("upgrade", *self._release, "--reset-then-reuse-values", *settings)

    def rollback(self) -> None:
        self.run("rollback", "weightless", "--namespace", NAMESPACE)

    def run(self, *arguments: str) -> str:
        """What helm prints; AssertionError with its words when it fails."""
        done = subprocess.run(
            [self.helm, *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubernetes.kubeconfig)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout
