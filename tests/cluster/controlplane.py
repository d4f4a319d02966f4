"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, with nothing switched off that a driver could stumble over.

RBAC and the node authorizer are on, ServiceAccount tokens are signed and bound, and the admission plugins are Kubernetes' own
choice and NodeRestriction. Runs in a machine of its own (machine.py), and knows nothing of the node.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.cluster.credentials import Credentials
from tests.cluster.machine import NODE_ADDRESS, SERVICE_ADDRESS
from tests.cluster.processes import program

SERVER: Final = f"https://{SERVICE_ADDRESS}:443"
_SERVER_NAMES: Final = (SERVICE_ADDRESS, NODE_ADDRESS, "127.0.0.1", "localhost", "kubernetes.default.svc")


@contextmanager
def control_plane(programs: Path, credentials: Credentials, *, logs: Path) -> Iterator[Path]:
    """Runs a control plane; the administrator's kubeconfig."""
    admin = credentials.kubeconfig("admin")
    with ExitStack() as stack:
        for arguments, probe in (
            (_etcd(), "http://127.0.0.1:2379/health"),
            (_api_server(programs, credentials), "https://127.0.0.1:443/readyz"),
            (_controller_manager(programs, credentials), "https://127.0.0.1:10257/healthz"),
            (_scheduler(programs, credentials), "https://127.0.0.1:10259/readyz"),
        ):
            stack.enter_context(program(arguments, logs=logs, ready=partial(_healthy, probe)))
        yield admin


def _etcd() -> list[str | Path]:
    urls = [f"--{kind}-urls=http://127.0.0.1:2379" for kind in ("listen-client", "advertise-client")]
    # In memory: nothing of it is to outlive the machine, and its many small writes do not wait for the disk.
    return ["etcd", "--data-dir=/run/etcd", *urls, "--listen-peer-urls=http://127.0.0.1:2380", "--logger=zap"]


def _api_server(programs: Path, credentials: Credentials) -> list[str | Path]:
    serving = credentials.identity("kube-apiserver", hosts=_SERVER_NAMES)
    to_kubelet = credentials.identity("kube-apiserver-kubelet-client")
    tokens = credentials.identity("service-accounts")
    return [
        programs / "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        "--secure-port=443",
        f"--advertise-address={NODE_ADDRESS}",
        "--service-cluster-ip-range=10.96.0.0/24",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={credentials.ca}",
        f"--kubelet-client-certificate={to_kubelet.certificate}",
        f"--kubelet-client-key={to_kubelet.key}",
        f"--kubelet-certificate-authority={credentials.ca}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer={SERVER}",
        f"--service-account-signing-key-file={tokens.key}",
        f"--service-account-key-file={tokens.key}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]


def _controller_manager(programs: Path, credentials: Credentials) -> list[str | Path]:
    kubeconfig = credentials.kubeconfig("system:kube-controller-manager", groups="system:kube-controller-manager")
    tokens = kubeconfig.parent / "service-accounts.key"
    return [
        programs / "kube-controller-manager",
        *_as_client(kubeconfig),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={tokens}",
        f"--root-ca-file={credentials.ca}",
    ]


def _scheduler(programs: Path, credentials: Credentials) -> list[str | Path]:
    return [
        programs / "kube-scheduler",
        *_as_client(credentials.kubeconfig("system:kube-scheduler", groups="system:kube-scheduler")),
    ]


def _as_client(kubeconfig: Path) -> list[str]:
    uses = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return [*(f"--{use}={kubeconfig}" for use in uses), "--leader-elect=false", "--bind-address=127.0.0.1"]


def _healthy(url: str) -> bool:
    # Each shows its health to anybody. Whether the certificate is right is for its clients.
    try:
        with urllib.request.urlopen(url, timeout=5, context=ssl._create_unverified_context()) as answer:
            return answer.status == 200
    except OSError:
        return False
