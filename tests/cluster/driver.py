"""The driver where it is installed: its pods, whether they are ready, and how they are replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.cluster.installation import NAMESPACE
from tests.cluster.kubernetes import Kubernetes, Object

NAME: Final = "csi.weightless.dev"
NODE_PLUGIN: Final = "app.kubernetes.io/component=node"
KEEPER: Final = "app.kubernetes.io/component=keeper"

_OURS: Final = "app.kubernetes.io/name=weightless"


@dataclass(frozen=True, slots=True)
class Driver:
    kubernetes: Kubernetes

    def until_ready(self) -> None:
        """Returns when each pod of the newest kind is ready, and kubelet knows the driver on each node that has one."""
        assert self.plugins()
        # Images may have to be pulled.
        for kind in ("daemonset", "deployment"):
            self._until(lambda kind=kind: self._all_ready(kind), f"each {kind} is ready", within_s=600)
        for node in {pod["spec"]["nodeName"] for pod in self.pods(NODE_PLUGIN)}:
            self._until(lambda node=node: self._known_on(node), f"kubelet of {node} knows the driver")

    def pods(self, component: str = _OURS, *, node: str = "") -> list[Object]:
        """Those of a component, on one node if that is named."""
        found = self.kubernetes.list("pods", namespace=NAMESPACE, selector=component)
        return [pod for pod in found if node in ("", pod["spec"].get("nodeName"))]

    def plugins(self) -> Object:
        """The DaemonSet of the node plugin."""
        found = self.kubernetes.list("daemonset", namespace=NAMESPACE, selector=NODE_PLUGIN)
        assert len(found) == 1, f"the namespace {NAMESPACE} has {len(found)} DaemonSets of node plugins"
        return found[0]

    def placement(self) -> Object:
        """Which nodes have a plugin, in the words of a pod's spec."""
        spec = self.plugins()["spec"]["template"]["spec"]
        return {name: spec[name] for name in ("affinity", "nodeSelector") if name in spec}

    def replace_pod(self, component: str, *, node: str) -> None:
        """Deletes a component's pod on a node, and returns when another is ready in its place."""
        [before] = self.pods(component, node=node)
        self.kubernetes.run("delete", "pod", "-n", NAMESPACE, before["metadata"]["name"])

        def replaced() -> bool:
            pods = self.pods(component, node=node)
            fresh = all(pod["metadata"]["uid"] != before["metadata"]["uid"] for pod in pods)
            return len(pods) == 1 and fresh and _ready(pods[0])

        self._until(replaced, f"the pod of {component} on {node} is replaced")

    @contextmanager
    def changed(self, spec: Object) -> Iterator[None]:
        """These fields of the CSIDriver's spec are others in the block."""
        before = self.kubernetes.get("csidriver", NAME)["spec"]
        patch = ["patch", "csidriver", NAME, "--type=merge", "--patch"]
        self.kubernetes.run(*patch, json.dumps({"spec": spec}))
        try:
            yield
        finally:
            self.kubernetes.run(*patch, json.dumps({"spec": {field: before.get(field) for field in spec}}))

    def publishes(self, *, node: str) -> int:
        """How often kubelet has asked the plugin of a node for a volume, successfully."""
        [pod] = self.pods(NODE_PLUGIN, node=node)
        [port] = [port for port in _ports(pod) if port.get("name") == "metrics"]
        # The API server takes the way to the pod, which need not be in our network.
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:{port['containerPort']}/proxy/metrics"
        found = 0
        for line in self.kubernetes.run("get", "--raw", path).splitlines():
            if line.startswith("weightless_csi_requests_total{") and "NodePublishVolume" in line and '"OK"' in line:
                found += int(float(line.rpartition(" ")[2]))
        return found

    def mounts(self, *, node: str) -> list[Object]:
        """What the plugin of a node says of its mounts."""
        [pod] = self.pods(NODE_PLUGIN, node=node)
        command = ["exec", "-n", NAMESPACE, pod["metadata"]["name"], "-c", "weightless", "--"]
        return list(json.loads(self.kubernetes.run(*command, "weightless", "status", "--json")))

    def logs(self) -> dict[str, str]:
        """What each pod wrote, all containers together."""
        names = [pod["metadata"]["name"] for pod in self.pods()]
        return {name: self.kubernetes.logs(name, namespace=NAMESPACE) for name in names}

    def _all_ready(self, kind: str) -> bool:
        return all(_as_wanted(item) for item in self.kubernetes.list(kind, namespace=NAMESPACE, selector=_OURS))

    def _known_on(self, node: str) -> bool:
        drivers = self.kubernetes.get("csinode", node).get("spec", {}).get("drivers") or []
        return any(driver["name"] == NAME for driver in drivers)

    def _until(self, condition: Any, what: str, *, within_s: float = 180) -> None:
        """AssertionError with what each pod that is not ready waits for, if the condition never holds."""
        try:
            self.kubernetes.until(condition, what, about="", within_s=within_s)
        except AssertionError as error:
            waiting = [pod["metadata"]["name"] for pod in self.pods() if not _ready(pod)]
            told = [
                f"{name}: {event}" for name in waiting for event in self.kubernetes.events(name, namespace=NAMESPACE)
            ]
            raise AssertionError("\n".join([f"{error}", *told])) from None


def _as_wanted(item: Object) -> bool:
    """Whether a DaemonSet or Deployment has all the pods that it wants, and each is ready and of the newest kind."""
    status, spec = item.get("status", {}), item["spec"]
    if status.get("observedGeneration", 0) < item["metadata"]["generation"]:
        return False
    if item["kind"] == "Deployment":
        wanted, ready, updated = spec["replicas"], status.get("readyReplicas", 0), status.get("updatedReplicas", 0)
    else:
        wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        on_delete = spec["updateStrategy"]["type"] == "OnDelete"
        updated = wanted if on_delete else status.get("updatedNumberScheduled", 0)
    return bool(0 < wanted == ready == updated)


def _ports(pod: Object) -> list[Object]:
    return [port for container in pod["spec"]["containers"] for port in container.get("ports", ())]


def _ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
