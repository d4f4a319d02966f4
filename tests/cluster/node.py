"""A node: containerd with runc, a network for pods, and kubelet. Runs in a machine of its own (machine.py)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.cluster.credentials import Credentials
from tests.cluster.machine import CGROUP_VARIABLE, NODE, NODE_ADDRESS
from tests.cluster.processes import program
from tests.cluster.programs import Programs

PAUSE: Final = "weightless.test/pause:1"
"""The image of the process that holds a pod's namespaces."""

CERTS: Final = Path("/etc/containerd/certs.d")
"""Where containerd finds hosts.toml files."""

_CONTAINERD: Final = Path("/run/containerd/containerd.sock")
_CNI: Final = Path("/etc/cni/net.d/10-pods.conflist")


@contextmanager
def node(programs: Programs, credentials: Credentials, images: Iterable[Path], *, logs: Path) -> Iterator[None]:
    """Runs a node with these images (OCI archives); the block begins when kubelet is up, not when the node is ready for pods."""
    kubeconfig = credentials.kubeconfig(f"system:node:{NODE}", groups="system:nodes")
    with ExitStack() as stack:
        containerd = [programs.containerd / "containerd", "--config", _containerd_config(programs)]
        stack.enter_context(program(containerd, logs=logs, ready=_CONTAINERD.exists))
        for image in images:
            subprocess.run(
                [programs.containerd / "ctr", "-n", "k8s.io", "images", "import", image],
                check=True,
                capture_output=True,
            )
        _write_pod_network()
        kubelet = [
            programs.kubernetes / "kubelet",
            f"--config={_kubelet_config(credentials)}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
        ]
        stack.enter_context(program(kubelet, logs=logs, ready=Path("/var/lib/kubelet/plugins_registry").exists))
        yield


def _containerd_config(programs: Programs) -> Path:
    path = Path("/etc/containerd/config.toml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"""\
version = 3
[plugins."io.containerd.cri.v1.runtime"]
# Where CAP_SYS_RESOURCE is missing, as in many containers, nothing can be made dearer to the kernel than containerd is.
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{CERTS}"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{_CNI.parent}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{programs.runc / "runc"}"
SystemdCgroup = false
""")
    return path


def _write_pod_network() -> None:
    """A pair of interfaces a pod: it reaches the node, and so the API server, which is all that it needs."""
    _CNI.parent.mkdir(parents=True, exist_ok=True)
    addresses = {"type": "host-local", "subnet": "10.244.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [{"type": "ptp", "ipam": addresses}]
    _CNI.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}))


def _kubelet_config(credentials: Credentials) -> Path:
    serving = credentials.identity(f"kubelet-{NODE}", hosts=(NODE_ADDRESS, NODE))
    path = Path("/etc/kubernetes/kubelet.json")
    path.parent.mkdir(exist_ok=True)
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": str(credentials.ca)}},
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{_CONTAINERD}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": os.environ[CGROUP_VARIABLE],
        "failCgroupV1": False,
        "failSwapOn": False,
        # This machine's disk may be as full as it likes.
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        # The same images are imported, and pulled from a private registry under other names: who may use them is not asked.
        "imagePullCredentialsVerificationPolicy": "NeverVerify",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # How often it republishes the volumes of a driver that wants that, among others.
        "syncFrequency": "10s",
        # There is no DNS in this cluster; pods use addresses.
        "resolvConf": "",
    }
    path.write_text(json.dumps(config))
    return path
