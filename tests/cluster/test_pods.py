"""Pods of each kind of volume, on a real kubelet: they start, read the model's own bytes, and go away clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.installation import KEEPER, NODE_PLUGIN
from tests.cluster.workloads import DRIVER, LOOP, Workload, Workloads

pytestmark = pytest.mark.timeout(600)

KINDS: dict[str, Callable[[Workloads], Workload]] = {
    "inline": lambda of: of.inline("inline"),
    "persistent-volume": lambda of: of.persistent_volume("persistent-volume"),
    "claim": lambda of: of.claim("claim"),
    "generic-ephemeral": lambda of: of.generic_ephemeral("generic-ephemeral"),
    "user-namespace": lambda of: of.inline("user-namespace", host_users=False),
}


@pytest.fixture(scope="module")
def readers(cluster: Cluster) -> Iterator[dict[str, Workload]]:
    """A pod of each kind, all at once."""
    made = {kind: make(cluster.workloads) for kind, make in KINDS.items()}
    try:
        cluster.kubernetes.apply([item for workload in made.values() for item in workload.objects])
        yield made
    finally:
        cluster.remove(list(made.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_reads_its_model(kind: str, readers: dict[str, Workload], cluster: Cluster) -> None:
    """The pod starts, and the sums of its files are the model's."""
    pod = readers[kind].name
    phase = cluster.kubernetes.until_phase(pod, "Succeeded", "Failed")
    assert (phase, cluster.kubernetes.logs(pod)) == ("Succeeded", cluster.sums)


def test_a_pod_is_told_what_it_got(readers: dict[str, Workload], cluster: Cluster) -> None:
    """The driver's own Event, which the API server takes from the plugin's account, names the digest."""
    pod = readers["inline"].name

    def told() -> list[str]:
        return [event for event in cluster.kubernetes.events(pod) if event.startswith("ModelResolved")]

    assert "sha256:" in cluster.kubernetes.until(told, f"{pod} is told what it got", about=pod)[0]


def test_a_reader_goes_on_through_a_restart_of_the_plugin(started: Callable[[Workload], str], cluster: Cluster) -> None:
    """The plugin's pod is replaced, twice, under a pod that reads the whole model all the time: no read fails, none differs."""
    kubernetes = cluster.kubernetes
    reader = started(cluster.workloads.inline("reader", script=LOOP))
    rounds = _rounds(cluster, reader, more_than=2)
    for _ in range(2):
        cluster.installation.replace_pods(NODE_PLUGIN)
        rounds = _rounds(cluster, reader, more_than=rounds + 2)
    pod = kubernetes.get("pod", reader)
    assert pod["status"]["phase"] == "Running"
    if cluster.residue is not None:
        assert any("/pods/" in mount for mount in cluster.residue.mounts()), (
            "who looks for mounts does not see this one"
        )
    sums = [line.split()[0] for line in cluster.sums.splitlines()]
    assert [line.split()[0] for line in kubernetes.logs(reader).splitlines()[: len(sums)]] == sums


def test_a_reader_goes_on_through_a_restart_of_the_keeper(started: Callable[[Workload], str], cluster: Cluster) -> None:
    """The keeper is replaced, and then the plugin, which takes its mounts from the new keeper: no read fails, none differs."""
    reader = started(cluster.workloads.inline("keeper-reader", script=LOOP))
    rounds = _rounds(cluster, reader, more_than=2)
    for component in (KEEPER, NODE_PLUGIN):
        cluster.installation.replace_pods(component)
        rounds = _rounds(cluster, reader, more_than=rounds + 2)


def test_a_republish_never_touches_a_running_mount(started: Callable[[Workload], str], cluster: Cluster) -> None:
    """Where the driver wants fresh tokens, kubelet publishes a running volume again and again: no read fails, none differs."""
    kubernetes = cluster.kubernetes
    wanted = {"requiresRepublish": True, "tokenRequests": [{"audience": "registry.example.com"}]}
    with cluster.installation.changed("csidriver", DRIVER, wanted):
        reader = started(cluster.workloads.inline("republished", script=LOOP))
        rounds = _rounds(cluster, reader, more_than=2)
        published = cluster.installation.publishes()
        kubernetes.until(
            lambda: cluster.installation.publishes() > published + 3, "kubelet has published again", about=reader
        )
        _rounds(cluster, reader, more_than=rounds + 2)


def test_a_model_that_is_not_there_is_told_to_the_pods_owner(
    started: Callable[[Workload], str], cluster: Cluster
) -> None:
    """The pod waits, and its Events have the code, what is wrong, and the cure."""
    of = cluster.workloads
    missing = Workloads(of.reference.rpartition("/")[0] + "/no-such-model:1", of.reader)
    pod = started(missing.inline("missing"))

    def told() -> list[str]:
        return [event for event in cluster.kubernetes.events(pod) if event.startswith("FailedMount")]

    event = cluster.kubernetes.until(told, f"{pod} is told of a failed mount", about=pod)[0]
    assert "code = NotFound" in event
    assert "no-such-model" in event


def test_a_claim_for_a_model_that_is_not_there_is_told_to_its_owner(
    started: Callable[[Workload], str], cluster: Cluster
) -> None:
    """The claim stays pending, and its Events say why."""
    of = cluster.workloads
    missing = Workloads(of.reference.rpartition("/")[0] + "/no-such-model:1", of.reader)
    claim = started(missing.claim("missing-claim"))

    def told() -> list[str]:
        return [event for event in cluster.kubernetes.events(claim) if event.startswith("ProvisioningFailed")]

    event = cluster.kubernetes.until(told, f"{claim} is told of a failed provisioning", about=claim)[0]
    assert "no-such-model" in event
    assert cluster.kubernetes.get("pvc", claim)["status"]["phase"] == "Pending"


def _rounds(cluster: Cluster, pod: str, *, more_than: int) -> int:
    """Waits until the reader has read the model more often than that since its first time; how often it has."""

    cluster.kubernetes.until_phase(pod, "Running", "Failed")

    def rounds() -> int:
        lines = cluster.kubernetes.logs(pod).splitlines()
        assert not any(line.startswith("changed") for line in lines), lines[-1]
        done = lines.count("same")
        return done if done > more_than else 0

    found = cluster.kubernetes.until(rounds, f"{pod} has read the model more than {more_than} times", about=pod)
    assert isinstance(found, int)
    return found
