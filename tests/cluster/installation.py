"""The driver in a cluster, by the manifests of deploy/kubernetes, and what an uninstall leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from tests.cluster.kubernetes import Kubernetes, Object
from tests.cluster.workloads import DRIVER

MANIFESTS: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
NAMESPACE: Final = "weightless"
NODE_PLUGIN: Final = "app.kubernetes.io/component=node"
KEEPER: Final = "app.kubernetes.io/component=keeper"


def rendered(kubectl: Path) -> list[Object]:
    """What `kubectl apply -k deploy/kubernetes` would apply."""
    text = Kubernetes(kubectl, Path("/dev/null")).run("kustomize", str(MANIFESTS))
    return [document for document in yaml.safe_load_all(text) if document]


def images(objects: Sequence[Object]) -> dict[str, str]:
    """The images that these objects name, by the last part of their repositories."""
    names = {container["image"] for pod in _pods(objects) for container in pod["containers"]}
    return {name.rpartition("/")[2].partition(":")[0]: name for name in names}


def adapted(objects: Sequence[Object], *, image: str = "", plain_http: bool = False) -> list[Object]:
    """With another image of the driver; with registries that have no certificates."""
    copied: list[Object] = json.loads(json.dumps(list(objects)))
    if image:
        theirs = images(objects)["weightless"]
        for pod in _pods(copied):
            for container in pod["containers"]:
                container["image"] = image if container["image"] == theirs else container["image"]
    if plain_http:
        for item in copied:
            if item["kind"] == "ConfigMap":
                # At the top, before the first table of the file.
                item["data"] = {name: f"plain-http = true\n{text or ''}" for name, text in item["data"].items()}
    return copied


@dataclass(frozen=True, slots=True)
class Installation:
    kubernetes: Kubernetes
    objects: tuple[Object, ...]

    def install(self) -> None:
        """Returns when each pod is ready and kubelet knows the driver on each node that has one."""
        for kind in ("csidriver", "namespace"):
            name = DRIVER if kind == "csidriver" else NAMESPACE
            assert not self.kubernetes.get(kind, name), (
                f"{kind} {name} is there already: this test would remove it at its end"
            )
        # Namespaces before what lies in them.
        for item in self.objects:
            if item["kind"] == "Namespace":
                self.kubernetes.apply([item])
        self.kubernetes.apply(self.objects)
        for item in self.objects:
            if item["kind"] in ("DaemonSet", "Deployment"):
                kind, name = item["kind"], item["metadata"]["name"]
                self.kubernetes.until(
                    lambda kind=kind, name=name: self._all_ready(kind, name),
                    f"{kind} {name} is ready",
                    about=name,
                    namespace=NAMESPACE,
                )
        for pod in self.pods(NODE_PLUGIN):
            node = pod["spec"]["nodeName"]
            self.kubernetes.until(
                lambda node=node: self._knows_driver(node), f"kubelet of {node} knows the driver", about=node
            )

    def uninstall(self) -> None:
        self.kubernetes.delete(self.objects)

    def pods(self, component: str) -> list[Object]:
        return self.kubernetes.list("pods", namespace=NAMESPACE, selector=component)

    def replace_pods(self, component: str) -> None:
        """Deletes a component's pods, and returns when others are ready in their place."""
        before = {pod["metadata"]["uid"] for pod in self.pods(component)}
        self.kubernetes.run("delete", "pod", "-n", NAMESPACE, "-l", component)

        def replaced() -> bool:
            pods = self.pods(component)
            fresh = not before & {pod["metadata"]["uid"] for pod in pods}
            return fresh and len(pods) == len(before) and all(_ready(pod) for pod in pods)

        name = next(iter(pod["metadata"]["generateName"].rstrip("-") for pod in self.pods(component)), "")
        self.kubernetes.until(replaced, f"the pods of {component} are replaced", about=name, namespace=NAMESPACE)

    @contextmanager
    def changed(self, kind: str, name: str, spec: Object) -> Iterator[None]:
        """These fields of an object's spec are others in the block."""
        before = self.kubernetes.get(kind, name)["spec"]
        patch = ["patch", kind, name, "--type=merge", "--patch"]
        self.kubernetes.run(*patch, json.dumps({"spec": spec}))
        try:
            yield
        finally:
            self.kubernetes.run(*patch, json.dumps({"spec": {field: before.get(field) for field in spec}}))

    def publishes(self) -> int:
        """How often kubelet has asked the plugins for a volume, successfully."""
        found = 0
        for pod in self.pods(NODE_PLUGIN):
            # The API server takes the way to the pod, which is not in our network.
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:9808/proxy/metrics"
            for line in self.kubernetes.run("get", "--raw", path).splitlines():
                if line.startswith("weightless_csi_requests_total{") and "NodePublishVolume" in line and '"OK"' in line:
                    found += int(float(line.rpartition(" ")[2]))
        return found

    def logs(self) -> dict[str, str]:
        """What each pod wrote, all containers together."""
        pods = self.kubernetes.list("pods", namespace=NAMESPACE)
        names = [pod["metadata"]["name"] for pod in pods]
        return {name: self.kubernetes.logs(name, namespace=NAMESPACE) for name in names}

    def _all_ready(self, kind: str, name: str) -> bool:
        status = self.kubernetes.get(kind, name, namespace=NAMESPACE).get("status", {})
        wanted = status.get("desiredNumberScheduled", status.get("replicas", 0))
        return bool(wanted) and wanted == status.get("numberReady", status.get("readyReplicas", 0))

    def _knows_driver(self, node: str) -> bool:
        drivers = self.kubernetes.get("csinode", node).get("spec", {}).get("drivers") or []
        return any(driver["name"] == DRIVER for driver in drivers)


def _pods(objects: Sequence[Object]) -> list[Object]:
    return [item["spec"]["template"]["spec"] for item in objects if item["kind"] in ("DaemonSet", "Deployment")]


def _ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
