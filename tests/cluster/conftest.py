"""A cluster with the driver in it, for all tests of this directory; and that neither leaves anything."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import settings
from tests.cluster.controlplane import SERVER, control_plane
from tests.cluster.credentials import Credentials
from tests.cluster.installation import Installation, adapted, rendered
from tests.cluster.kubernetes import Kubernetes
from tests.cluster.machine import LOGS_VARIABLE, NODE_ADDRESS
from tests.cluster.node import node
from tests.cluster.programs import build
from tests.cluster.residue import Residue
from tests.cluster.workloads import Workload, Workloads
from tests.support.dockerregistry import DockerRegistry
from tests.support.models import push_with_oras

if settings.MODE not in os.environ:
    # Not of `make test`: see CONTRIBUTING.md, A real cluster.
    collect_ignore_glob = ["test_*.py"]

_SIZES_BYTES = {
    "config.json": 700,
    "model-00001-of-00002.safetensors": 48 << 20,
    "model-00002-of-00002.safetensors": 17 << 20,
}


@dataclass(frozen=True, slots=True)
class Cluster:
    kubernetes: Kubernetes
    installation: Installation
    workloads: Workloads
    sums: str
    """What a pod that read the model right has written."""
    residue: Residue | None
    """Looks for what is left on the node, where the node is ours."""

    def remove(self, workloads: Sequence[Workload]) -> None:
        """Deletes them; when Kubernetes says that they are gone, so are the mounts of their pods."""
        pods = [self.kubernetes.get("pod", workload.name) for workload in workloads]
        self.kubernetes.delete([item for workload in workloads for item in workload.objects])
        if self.residue is not None:
            assert self.residue.of_pods([pod["metadata"]["uid"] for pod in pods if pod]) == []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    own = os.environ[settings.MODE] == settings.OWN
    with ExitStack() as stack:
        found = stack.enter_context(_own(tmp_path_factory.mktemp("model")) if own else _foreign())
        stack.enter_context(_installed(found))
        yield found


@contextmanager
def _own(scratch: Path) -> Iterator[Cluster]:
    programs, logs = build(), Path(os.environ[LOGS_VARIABLE])
    credentials = Credentials(Path("/run/credentials"), server=SERVER)
    with ExitStack() as stack:
        registry = stack.enter_context(DockerRegistry(scratch / "registry", address=NODE_ADDRESS))
        sums = _push_model(registry, scratch)
        admin = stack.enter_context(control_plane(programs.kubernetes, credentials, logs=logs))
        archives = [Path(path) for path in os.environ[settings.IMAGES].split(os.pathsep)]
        stack.enter_context(node(programs, credentials, archives, logs=logs))
        kubernetes = Kubernetes(programs.kubernetes / "kubectl", admin)
        manifests = adapted(rendered(kubernetes.kubectl), plain_http=True)
        yield Cluster(
            kubernetes=kubernetes,
            installation=Installation(kubernetes, tuple(manifests)),
            workloads=Workloads(registry.reference("models/small", "1.0"), settings.READER),
            sums=sums,
            residue=Residue(),
        )


@contextmanager
def _foreign() -> Iterator[Cluster]:
    given = settings.Foreign.from_environment()
    kubectl = shutil.which("kubectl")
    assert kubectl is not None, "kubectl is not installed"
    kubernetes = Kubernetes(Path(kubectl), Path(os.environ["KUBECONFIG"]))
    manifests = adapted(rendered(kubernetes.kubectl), image=given.image)
    yield Cluster(
        kubernetes=kubernetes,
        installation=Installation(kubernetes, tuple(manifests)),
        workloads=Workloads(given.reference, given.reader),
        sums=given.sums,
        residue=None,
    )


@contextmanager
def _installed(cluster: Cluster) -> Iterator[None]:
    """The driver is there in the block. After it, it is gone from the cluster, and from the node if that is ours."""
    try:
        cluster.installation.install()
        if cluster.residue is not None:
            assert cluster.residue.processes(), "who looks for what is left does not see what is there"
        yield
        logs = cluster.installation.logs()
    finally:
        cluster.installation.uninstall()
    refused = [
        f"{pod}: {line}" for pod, text in logs.items() for line in text.splitlines() if "forbidden" in line.lower()
    ]
    assert not refused, "the API server refused:\n" + "\n".join(refused)
    if cluster.residue is not None:
        cluster.residue.none()


@pytest.fixture
def started(cluster: Cluster) -> Iterator[Callable[[Workload], str]]:
    """Creates a workload, and names its pod. It goes when the test has ended, and on a node of ours it leaves no mount."""
    workloads: list[Workload] = []

    def start(workload: Workload) -> str:
        workloads.append(workload)
        cluster.kubernetes.apply(workload.objects)
        return workload.name

    yield start
    cluster.remove(workloads)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps what the cluster has to say at the time of a failure: at the end, its pods are gone."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster) and LOGS_VARIABLE in os.environ:
        (Path(os.environ[LOGS_VARIABLE]) / f"{item.name}.txt").write_text(cluster.kubernetes.account())
    return report


def _push_model(registry: DockerRegistry, scratch: Path) -> str:
    """Puts a model into the registry, as a stranger's tool does; its sums."""
    directory = scratch / "model"
    directory.mkdir()
    chance = random.Random(5)
    sums = []
    for name, size in _SIZES_BYTES.items():
        content = chance.randbytes(size)
        (directory / name).write_bytes(content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  ./{name}\n")
    push_with_oras(directory, registry, "models/small", scratch)
    return "".join(sums)
