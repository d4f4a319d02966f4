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
from tests.cluster.installation import CHART, MANIFESTS, rendered
from tests.cluster.kubernetes import Kubernetes
from tests.cluster.machine import LOGS_VARIABLE
from tests.cluster.node import CERTS, PAUSE, node
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
"""The paths of archives by the names of images, in JSON."""
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
        images = {name: Path(path) for name, path in json.loads(os.environ[IMAGES]).items()}
        found.keep_images({name: path for name, path in images.items() if name != PAUSE})
        found.private.write_hosts_toml(CERTS)
        stack.enter_context(node(programs, credentials, images.values(), logs=logs))
        code = 0
        ways = os.environ.get(WAYS, "chart manifests").split()
        for way in ways:
            told = directory / way
            told.mkdir()
            prepare, others = _WAYS[way]
            given = prepare(told, found, kubectl)
            (told / "sums").write_text(found.sums)
            given |= {"SUMS": told / "sums", "HERE": "yes", "LOGS": logs}
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
        if "chart" in ways and not found.mirrored():
            print("cluster-test: failed: nobody has asked the mirror on the node's loopback", flush=True)
            code = code or 1
        return code


def _chart(told: Path, found: Registries, _kubectl: Path) -> dict[str, object]:
    """All that a private registry takes, images included, and a mirror that only the node's own network reaches."""
    private, mirror = found.private, found.mirror
    assert private.certificates is not None
    hosts = f'server = "{private.url}"\nca = "ca.crt"\n\n[host."{mirror.url}"]\n  capabilities = ["pull"]\n'
    values = {
        "image": {"repository": found.image("weightless")},
        "sidecars": {
            name: {"image": {"repository": found.image(sidecar["image"]["repository"].rpartition("/")[2])}}
            for name, sidecar in yaml.safe_load((CHART / "values.yaml").read_text())["sidecars"].items()
        },
        "imagePullSecrets": [{"name": settings.SECRET}],
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
        "READER": found.image("reader") + ":1",
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
    return {"KUSTOMIZATION": told, "MODEL": found.open.reference(REPOSITORY, "1.0"), "READER": READER}


_WAYS: Final[dict[str, tuple[Callable[[Path, Registries, Path], dict[str, object]], tuple[str, ...]]]] = {
    "chart": (_chart, ("restarts", "native")),
    "manifests": (_manifests, ("chart", "private")),
}
"""What each way is prepared by, and the tests that are left to the other, as they would take too long twice."""


def _ignoring(tests: Sequence[str]) -> list[str]:
    return [f"--ignore=tests/cluster/test_{name}.py" for name in tests]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
