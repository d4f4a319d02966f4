"""The driver in a cluster, for all tests of this directory; and that neither they nor it leave anything."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import installation as installing
from tests.cluster import settings
from tests.cluster.driver import Driver
from tests.cluster.installation import Chart, Installation, Manifests, installed
from tests.cluster.kubernetes import Kubernetes, Object
from tests.cluster.residue import Residue
from tests.cluster.settings import Settings
from tests.cluster.workloads import Workload, Workloads

if settings.RUNS not in os.environ:
    # Not of `make test`: see CONTRIBUTING.md, A real cluster.
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_told.py"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    settings: Settings
    kubernetes: Kubernetes
    installation: Installation
    driver: Driver
    workloads: Workloads
    sums: list[str]
    """What a pod that read the model right has written, sorted."""
    residue: Residue | None
    """Looks for what is left on the node, where that can be looked at."""

    def create(self, workload: Workload) -> None:
        self.kubernetes.refuse_what_is_there(workload.objects)
        self.kubernetes.apply(workload.objects)

    def remove(self, workloads: Sequence[Workload]) -> None:
        """Deletes them; when Kubernetes says that they are gone, so are the mounts of their pods."""
        pods = [self.kubernetes.get("pod", workload.name) for workload in workloads]
        self.kubernetes.delete([item for workload in workloads for item in workload.objects])
        if self.residue is not None:
            assert self.residue.of_pods([pod["metadata"]["uid"] for pod in pods if pod]) == []

    def node_of(self, pod: str) -> str:
        return str(self.kubernetes.get("pod", pod)["spec"]["nodeName"])

    def rounds(self, pod: str, *, more_than: int) -> int:
        """Waits until a reader (LOOP) has read the model more often than that since its first time; how often it has."""
        self.kubernetes.until_phase(pod, "Running", "Failed")

        def rounds() -> int:
            lines = self.kubernetes.logs(pod).splitlines()
            assert not any(line.startswith("changed") for line in lines), lines[-1]
            done = lines.count("same")
            return done if done > more_than else 0

        return int(self.kubernetes.until(rounds, f"{pod} has read the model more than {more_than} times", about=pod))


Started = Callable[[Workload], str]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    given = Settings.from_environment()
    kubernetes = Kubernetes(_program("kubectl"), given.kubeconfig)
    driver = Driver(kubernetes)
    installation = _installation(given, kubernetes)
    residue = Residue() if given.here else None
    with ExitStack() as stack:
        secret = stack.enter_context(_namespace(kubernetes, given))
        stack.enter_context(_gone_afterwards(residue, clean=given.clean))
        stack.enter_context(installed(installation))
        driver.until_ready()
        if residue is not None:
            assert residue.processes(), "who looks for what is left does not see what is there"
        stack.enter_context(_refused_nothing(driver))
        yield Cluster(
            settings=given,
            kubernetes=kubernetes,
            installation=installation,
            driver=driver,
            workloads=Workloads(
                reference=given.reference,
                reader=given.reader,
                placement=driver.placement(),
                secret=secret,
                pull_secret=secret,
            ),
            sums=sorted(given.sums.splitlines()),
            residue=residue,
        )


@pytest.fixture
def started(cluster: Cluster) -> Iterator[Started]:
    """Creates a workload, and names its pod. It goes when the test has ended, and on a node of ours it leaves no mount."""
    workloads: list[Workload] = []

    def start(workload: Workload) -> str:
        cluster.create(workload)
        workloads.append(workload)
        return workload.name

    yield start
    cluster.remove(workloads)


def _installation(given: Settings, kubernetes: Kubernetes) -> Installation:
    others = [_docker_secret(given.docker_config, installing.NAMESPACE)] if given.docker_config else []
    if given.kustomization is not None:
        return Manifests(kubernetes, given.kustomization, others)
    assert given.values is not None
    return Chart(kubernetes, _helm(), given.values, given.clean, others)


@contextmanager
def _namespace(kubernetes: Kubernetes, given: Settings) -> Iterator[str]:
    """The tests' own, under the strictest profile that Kubernetes has for pods; the name of the secret in it, if there is one."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.NAMESPACE, "labels": labels}}
    kubernetes.refuse_what_is_there([namespace])
    try:
        kubernetes.apply([namespace])
        if given.docker_config:
            kubernetes.apply([_docker_secret(given.docker_config, settings.NAMESPACE)])
        yield settings.SECRET if given.docker_config else ""
    finally:
        kubernetes.delete([namespace])


@contextmanager
def _gone_afterwards(residue: Residue | None, *, clean: bool) -> Iterator[None]:
    yield
    if residue is not None:
        residue.none()
        if clean:
            assert residue.files() == []


@contextmanager
def _refused_nothing(driver: Driver) -> Iterator[None]:
    """The driver was allowed all that it asked of the API server."""
    yield
    refused = [
        f"{pod}: {line}"
        for pod, text in driver.logs().items()
        for line in text.splitlines()
        if "forbidden" in line.lower()
    ]
    assert not refused, "the API server refused:\n" + "\n".join(refused)


def _docker_secret(content: str, namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": settings.SECRET, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(content.encode()).decode()},
    }


def _program(name: str) -> Path:
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed"
    return Path(path)


def _helm() -> Path:
    script = Path(__file__).parents[2] / "scripts" / "helm.sh"
    return Path(subprocess.run([script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps what the cluster has to say at the time of a failure: at the end, its pods are gone."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster) and cluster.settings.logs is not None:
        account = cluster.kubernetes.account(settings.NAMESPACE, installing.NAMESPACE)
        (cluster.settings.logs / f"{item.name}.txt").write_text(account)
    return report
