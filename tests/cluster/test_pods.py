"""Pods of each kind of volume, on a real kubelet: they start, read the model's own bytes, and go away clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.cluster.conftest import Cluster, Started
from tests.cluster.installation import installed
from tests.cluster.workloads import Workload, Workloads

pytestmark = pytest.mark.timeout(1800)

KINDS: dict[str, Callable[[Workloads], Workload]] = {
    "inline": lambda of: of.inline("inline"),
    "persistent-volume": lambda of: of.persistent_volume("persistent-volume"),
    "claim": lambda of: of.claim("claim"),
    "generic-ephemeral": lambda of: of.generic_ephemeral("generic-ephemeral"),
}


@pytest.fixture(scope="module")
def readers(cluster: Cluster) -> Iterator[dict[str, Workload]]:
    """A pod of each kind, all at once."""
    made = {kind: make(cluster.workloads) for kind, make in KINDS.items()}
    for workload in made.values():
        cluster.kubernetes.refuse_what_is_there(workload.objects)
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
    assert (phase, sorted(cluster.kubernetes.logs(pod).splitlines())) == ("Succeeded", cluster.sums)


def test_a_pod_is_told_what_it_got(readers: dict[str, Workload], cluster: Cluster) -> None:
    """The driver's own Event, which the API server takes from the plugin's account, names the digest."""
    assert "sha256:" in cluster.kubernetes.told(readers["inline"].name, "ModelResolved")


def test_a_model_that_is_not_there_is_told_to_the_pods_owner(started: Started, cluster: Cluster) -> None:
    """The pod waits, and its Events have the code, what is wrong, and the cure."""
    pod = started(_missing(cluster).inline("missing"))
    event = cluster.kubernetes.told(pod, "FailedMount")
    # A registry need not say to everybody what it does not have.
    assert any(f"code = {code} " in event for code in ("NotFound", "PermissionDenied", "Unauthenticated"))
    assert "no-such-model" in event


def test_a_claim_for_a_model_that_is_not_there_is_told_to_its_owner(started: Started, cluster: Cluster) -> None:
    """The claim stays pending, and its Events say why."""
    claim = started(_missing(cluster).claim("missing-claim"))
    assert "no-such-model" in cluster.kubernetes.told(claim, "ProvisioningFailed")
    assert cluster.kubernetes.get("pvc", claim)["status"]["phase"] == "Pending"


def test_what_somebody_has_installed_is_left_alone(cluster: Cluster) -> None:
    """These tests refuse a cluster that has the driver, and do not remove it at their end."""
    before = cluster.kubernetes.get("csidriver", "csi.weightless.dev")
    with pytest.raises(AssertionError, match="there already"), installed(cluster.installation):
        pass
    assert cluster.kubernetes.get("csidriver", "csi.weightless.dev") == before


def _missing(cluster: Cluster) -> Workloads:
    of = cluster.workloads
    return replace(of, reference=of.reference.partition("@")[0].rpartition("/")[0] + "/no-such-model:1")
