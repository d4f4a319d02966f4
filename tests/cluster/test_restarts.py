"""Readers while parts of the driver are replaced under them, and while kubelet publishes their volumes again."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Cluster, Started
from tests.cluster.driver import KEEPER, NODE_PLUGIN
from tests.cluster.workloads import LOOP, hashes

pytestmark = pytest.mark.timeout(1800)


def test_a_reader_goes_on_through_a_restart_of_the_plugin(started: Started, cluster: Cluster) -> None:
    """The plugin's pod is replaced, twice, under a pod that reads by FUSE all the time: no read fails, none differs."""
    reader = started(cluster.workloads.inline("reader", script=LOOP, native="off"))
    rounds = cluster.rounds(reader, more_than=2)
    for _ in range(2):
        cluster.driver.replace_pod(NODE_PLUGIN, node=cluster.node_of(reader))
        rounds = cluster.rounds(reader, more_than=rounds + 2)
    assert cluster.kubernetes.get("pod", reader)["status"]["phase"] == "Running"
    if cluster.residue is not None:
        seen = [mount for mount in cluster.residue.mounts() if "/pods/" in mount]
        assert seen, "who looks for mounts does not see this one"
    kind, *lines = cluster.kubernetes.logs(reader).splitlines()
    assert kind.startswith("mounted as fuse")
    assert hashes(lines[: len(cluster.sums)]) == hashes(cluster.sums)


def test_a_reader_goes_on_through_a_restart_of_the_keeper(started: Started, cluster: Cluster) -> None:
    """The keeper is replaced, and then the plugin, which takes its mounts from the new keeper: no read fails, none differs."""
    reader = started(cluster.workloads.inline("keeper-reader", script=LOOP, native="off"))
    rounds = cluster.rounds(reader, more_than=2)
    for component in (KEEPER, NODE_PLUGIN):
        cluster.driver.replace_pod(component, node=cluster.node_of(reader))
        rounds = cluster.rounds(reader, more_than=rounds + 2)


def test_a_republish_never_touches_a_running_mount(started: Started, cluster: Cluster) -> None:
    """Where the driver wants fresh tokens, kubelet publishes a running volume again and again: no read fails, none differs."""
    wanted = {"requiresRepublish": True, "tokenRequests": [{"audience": "registry.example.com"}]}
    with cluster.driver.changed(wanted):
        reader = started(cluster.workloads.inline("republished", script=LOOP, native="off"))
        rounds = cluster.rounds(reader, more_than=2)
        node = cluster.node_of(reader)
        published = cluster.driver.publishes(node=node)
        cluster.kubernetes.until(
            lambda: cluster.driver.publishes(node=node) > published + 1,
            "kubelet has published again",
            about=reader,
            within_s=600,
        )
        cluster.rounds(reader, more_than=rounds + 2)
