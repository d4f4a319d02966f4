"""A cluster made here, in which the tests run as in any: `python -m tests.cluster` with KUBECONFIG, for each way to install.

This is the first program in a machine of its own (machine.py). The tests get nothing of its environment: they know what
CONTRIBUTING.md (A real cluster) tells an administrator to set.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import yaml

from tests.cluster import settings
from tests.cluster.controlplane import SERVER, control_plane
from tests.cluster.credentials import Credentials
from tests.cluster.images import READER
from tests.cluster.installation import MANIFESTS, rendered
from tests.cluster.kubernetes import Kubernetes
from tests.cluster.machine import LOGS_VARIABLE
from tests.cluster.node import node
from tests.cluster.programs import build
from tests.cluster.registries import (
    ACCOUNT,
    ANNOTATION,
    AUDIENCE,
    PROVIDER_CONFIG,
    PROVIDERS,
    REPOSITORY,
    Registries,
    registries,
)
from tests.support.dockerregistry import PASSWORD, USER

IMAGES: Final = "WEIGHTLESS_CLUSTER_IMAGES"
"""Archives for the node."""
WAYS: Final = "WEIGHTLESS_CLUSTER_WAYS"
"""By which ways the driver is installed, one after the other; `chart manifests` if not set."""


def main(arguments: list[str]) -> int:
    programs, logs = build(), Path(os.environ[LOGS_VARIABLE])
    credentials = Credentials(Path("/run/credentials"), server=SERVER)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/lib")))
        kubectl = programs.kubernetes / "kubectl"
        admin = stack.enter_context(control_plane(programs.kubernetes, credentials, logs=logs))
        found = stack.enter_context(registries(directory / "registries", Kubernetes(kubectl, admin)))
        archives = [Path(path) for path in os.environ[IMAGES].split(os.pathsep)]
        stack.enter_context(node(programs, credentials, archives, logs=logs))
        code = 0
        for way in os.environ.get(WAYS, "chart manifests").split():
            told = directory / way
            told.mkdir()
            prepare, others = _WAYS[way]
            given = prepare(told, found, kubectl)
            (told / "sums").write_text(found.sums)
            given |= {"SUMS": told / "sums", "READER": READER, "HERE": "yes", "LOGS": logs}
            environment = {
                # The kubectl of these Kubernetes, before one of the system's.
                "PATH": f"{programs.kubernetes}:{os.environ['PATH']}",
                "HOME": os.environ["HOME"],
                "KUBECONFIG": str(admin),
                **{settings.PREFIX + name: str(value) for name, value in given.items()},
            }
            print(f"cluster-test: installed by the {way}", flush=True)
            command = [sys.executable, "-m", "tests.cluster", *_ignoring(others), *arguments]
            code = subprocess.run(command, env=environment, check=False).returncode or code
            if way == "chart" and not code:
                assert found.mirrored(), "nobody has asked the mirror on the node's loopback"
        return code


def _chart(told: Path, found: Registries, _kubectl: Path) -> dict[str, object]:
    """All that a private registry takes, and a mirror that only the node's own network reaches."""
    private, mirror = found.private, found.mirror
    assert private.certificates is not None
    hosts = f'server = "{private.url}"\nca = "ca.crt"\n\n[host."{mirror.url}"]\n  capabilities = ["pull"]\n'
    values = {
        "image": {"repository": _repository()},
        "hostNetwork": True,
        "registries": {"hosts": {private.host: {"hosts.toml": hosts, "ca.crt": private.certificates.ca.read_text()}}},
        "credentials": {
            "allow": ["pod-identity", "publish-secret"],
            "providers": {"config": str(PROVIDER_CONFIG), "binDir": str(PROVIDERS)},
            "tokenRequests": [{"audience": AUDIENCE, "expirationSeconds": 600}],
            "requiresRepublish": True,
        },
        "kubernetes": {"serviceAccountAnnotations": True},
        "controller": {"secretNamespaces": [settings.NAMESPACE]},
    }
    (told / "values.yaml").write_text(yaml.safe_dump(values))
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (told / "config.json").write_text(json.dumps({"auths": {private.host: {"auth": auth}}}))
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "annotations": {ANNOTATION: "yes"}},
    }
    (told / "account.yaml").write_text(yaml.safe_dump(account))
    return {
        "VALUES": told / "values.yaml",
        "MODEL": private.reference(REPOSITORY, "1.0"),
        "DOCKER_CONFIG": told / "config.json",
        "ACCOUNT": told / "account.yaml",
        "CLEAN": "yes",
    }


def _manifests(told: Path, found: Registries, kubectl: Path) -> dict[str, object]:
    """What `kubectl apply -k deploy/kubernetes` applies, but for one line: the open registry has no TLS."""
    [config] = [item for item in rendered(kubectl, MANIFESTS) if item["kind"] == "ConfigMap"]
    # At the top, before the first table of the file.
    patch = {**config, "data": {name: f"plain-http = true\n{text or ''}" for name, text in config["data"].items()}}
    (told / "config.yaml").write_text(yaml.safe_dump(patch))
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # Kustomize takes no absolute path.
        "resources": [os.path.relpath(MANIFESTS.resolve(), told.resolve())],
        "patches": [{"path": "config.yaml"}],
    }
    (told / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return {"KUSTOMIZATION": told, "MODEL": found.open.reference(REPOSITORY, "1.0")}


_WAYS: Final[dict[str, tuple[Callable[[Path, Registries, Path], dict[str, object]], tuple[str, ...]]]] = {
    "chart": (_chart, ("restarts", "native")),
    "manifests": (_manifests, ("chart", "private")),
}
"""What each way is prepared by, and the tests that are left to the other, as they would take too long twice."""


def _ignoring(tests: Sequence[str]) -> list[str]:
    return [f"--ignore=tests/cluster/test_{name}.py" for name in tests]


def _repository() -> str:
    """Where the manifests say that the driver's image is."""
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    return str(kustomization["images"][0]["newName"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
