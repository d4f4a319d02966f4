"""Pods that read a model, and the objects by which each gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.cluster.kubernetes import Object

DRIVER: Final = "csi.weightless.dev"

SUMS: Final = "cd /models && find -L . -type f | sort | xargs sha256sum"
"""Prints the model's files as sha256sum does, and ends."""

# Past the page cache, so that each turn asks the driver.
LOOP: Final = """\
set -o pipefail
cd /models
sums() { for file in $(find -L . -type f | sort); do dd if="$file" bs=1M iflag=direct 2>/dev/null | sha256sum || return 1; done; }
first=$(sums) || exit 1
echo "$first"
while next=$(sums) && [ "$next" = "$first" ]; do echo same; done
echo "changed: $next"
exit 1
"""
"""Prints the sums of the model's files, then reads them again and again until one read fails or differs."""


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


@dataclass(frozen=True, slots=True)
class Workloads:
    """Makes workloads that read `reference` with the image `reader`, which has a shell, find, sha256sum and dd."""

    reference: str
    reader: str

    def inline(
        self, name: str, *, script: str = SUMS, host_users: bool = True, attributes: dict[str, str] | None = None
    ) -> Workload:
        given = {f"{DRIVER}/reference": self.reference, **(attributes or {})}
        volume = {"csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": given}}
        return Workload(self._pod(name, volume, script, host_users=host_users))

    def persistent_volume(self, name: str, *, script: str = SUMS) -> Workload:
        """A PersistentVolume that an administrator made, and the claim that is bound to it."""
        source = {
            "driver": DRIVER,
            "volumeHandle": name,
            "readOnly": True,
            "volumeAttributes": {f"{DRIVER}/reference": self.reference},
        }
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": "default", "name": name},
            "csi": source,
        }
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        claim = _claim(name, {"storageClassName": "", "volumeName": name, **_CLAIMED})
        return Workload(self._pod(name, _claimed(name), script), (volume, claim))

    def claim(self, name: str, *, script: str = SUMS) -> Workload:
        """A StorageClass, and a claim for which the provisioner makes a volume."""
        claim = _claim(name, {"storageClassName": name, **_CLAIMED})
        return Workload(self._pod(name, _claimed(name), script), (self._storage_class(name), claim))

    def generic_ephemeral(self, name: str, *, script: str = SUMS) -> Workload:
        """A claim that lives as long as its pod."""
        template = {"spec": {"storageClassName": name, **_CLAIMED}}
        return Workload(
            self._pod(name, {"ephemeral": {"volumeClaimTemplate": template}}, script), (self._storage_class(name),)
        )

    def _storage_class(self, name: str) -> Object:
        return {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": DRIVER,
            "parameters": {"reference": self.reference},
        }

    def _pod(self, name: str, volume: Object, script: str, *, host_users: bool = True) -> Object:
        container = {
            "name": "reader",
            "image": self.reader,
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": True}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        spec: Object = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "model", **volume}],
        }
        if not host_users:
            spec["hostUsers"] = False
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


_CLAIMED: Final[Object] = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}


def _claim(name: str, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def _claimed(name: str) -> Object:
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
