"""Pods that read a model, and the objects by which each gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.cluster.driver import NAME as DRIVER
from tests.cluster.kubernetes import Object
from tests.cluster.settings import NAMESPACE

SUMS: Final = "cd /models && find -L . -type f -exec sha256sum {} +"
"""Prints the model's files as sha256sum does, and ends."""

# Past the page cache, so that each turn asks the driver, where that serves the mount.
LOOP: Final = """\
set -o pipefail
while read -r _ place kind _; do [ "$place" != /models ] || echo "mounted as $kind"; done </proc/self/mounts
cd /models
sums() {
  find -L . -type f | sort | while IFS= read -r file; do
    dd if="$file" bs=1M iflag=direct 2>/dev/null | sha256sum || exit 1
  done
}
first=$(sums) || exit 1
echo "$first"
while next=$(sums) && [ "$next" = "$first" ]; do echo same; done
echo "changed: $next"
exit 1
"""
"""Prints what kind of file system the model is and the sums of its files, and reads them until one read fails or differs."""


def hashes(lines: list[str]) -> list[str]:
    """Sums without names, of what a reader has written."""
    return sorted(line.split()[0] for line in lines)


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod and what has to be there before it."""

    pod: Object
    others: tuple[Object, ...] = ()

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def objects(self) -> list[Object]:
        return [*self.others, self.pod]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workloads:
    """Makes workloads that read `reference` with the image `reader`, which has a shell, find, sha256sum and dd."""

    reference: str
    reader: str
    placement: Mapping[str, Object] = field(default_factory=dict)
    """Which nodes have the driver."""
    secret: str = ""
    """With which volumes are pulled: its name, in the tests' namespace."""
    pull_secret: str = ""
    """With which the reader's image is."""

    def inline(
        self,
        name: str,
        *,
        script: str = SUMS,
        host_users: bool = True,
        native: str = "auto",
        account: str = "",
        node: str = "",
    ) -> Workload:
        """`native: off` is by FUSE, whatever the node has of the model already."""
        source: Object = {"driver": DRIVER, "readOnly": True, "volumeAttributes": self._attributes(native)}
        if self.secret:
            source["nodePublishSecretRef"] = {"name": self.secret}
        pod = self._pod(name, {"csi": source}, script)
        if not host_users:
            pod["spec"]["hostUsers"] = False
        if account:
            pod["spec"]["serviceAccountName"] = account
        if node:
            pod["spec"]["nodeName"] = node
        return Workload(pod)

    def persistent_volume(self, name: str, *, script: str = SUMS) -> Workload:
        """A PersistentVolume that an administrator made, and the claim that is bound to it."""
        source: Object = {
            "driver": DRIVER,
            "volumeHandle": _of_the_cluster(name),
            "readOnly": True,
            "volumeAttributes": self._attributes("auto"),
        }
        if self.secret:
            source["nodePublishSecretRef"] = {"name": self.secret, "namespace": NAMESPACE}
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": NAMESPACE, "name": name},
            "csi": source,
        }
        metadata = {"name": _of_the_cluster(name)}
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}
        claim = _claim(name, {"storageClassName": "", "volumeName": _of_the_cluster(name), **_CLAIMED})
        return Workload(self._pod(name, _claimed(name), script), (volume, claim))

    def claim(self, name: str, *, script: str = SUMS) -> Workload:
        """A StorageClass, and a claim for which the provisioner makes a volume."""
        claim = _claim(name, {"storageClassName": _of_the_cluster(name), **_CLAIMED})
        return Workload(self._pod(name, _claimed(name), script), (self._storage_class(name), claim))

    def generic_ephemeral(self, name: str, *, script: str = SUMS) -> Workload:
        """A claim that lives as long as its pod."""
        template = {"spec": {"storageClassName": _of_the_cluster(name), **_CLAIMED}}
        return Workload(
            self._pod(name, {"ephemeral": {"volumeClaimTemplate": template}}, script), (self._storage_class(name),)
        )

    def _attributes(self, native: str) -> dict[str, str]:
        return {f"{DRIVER}/reference": self.reference, f"{DRIVER}/native": native}

    def _storage_class(self, name: str) -> Object:
        parameters = {"reference": self.reference}
        if self.secret:
            for use in ("provisioner", "node-publish"):
                parameters[f"csi.storage.k8s.io/{use}-secret-name"] = self.secret
                parameters[f"csi.storage.k8s.io/{use}-secret-namespace"] = NAMESPACE
        return {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": _of_the_cluster(name)},
            "provisioner": DRIVER,
            "parameters": parameters,
        }

    def _pod(self, name: str, volume: Object, script: str) -> Object:
        container = {
            "name": "reader",
            "image": self.reader,
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": True}],
            # As the Pod Security profile "restricted" wants it.
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        spec: Object = {
            **self.placement,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "model", **volume}],
        }
        if self.pull_secret:
            spec["imagePullSecrets"] = [{"name": self.pull_secret}]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


_CLAIMED: Final[Object] = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}


def _of_the_cluster(name: str) -> str:
    """A name for what lies in no namespace."""
    return f"{NAMESPACE}-{name}"


def _claim(name: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _claimed(name: str) -> Object:
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
