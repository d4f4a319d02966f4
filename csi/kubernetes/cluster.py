"""Where the API server of our own cluster is: what kubelet puts into every pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the API server is, and by what it and we are known."""

    url: str
    token_file: Path
    ca_file: Path


def in_cluster(environ: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT) -> Cluster | None:
    """The cluster of the pod that this process runs in; None outside of one, or where the pod has no token."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    token_file, ca_file = directory / "token", directory / "ca.crt"
    if not host or not port or not token_file.is_file() or not ca_file.is_file():
        return None
    return Cluster(url=f"https://{f'[{host}]' if ':' in host else host}:{port}", token_file=token_file, ca_file=ca_file)
