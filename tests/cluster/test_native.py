"""A model that is whole on its node is shown by the kernel alone: pods read it without the driver."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Cluster, Started
from tests.cluster.driver import NODE_PLUGIN
from tests.cluster.workloads import LOOP, SUMS, hashes

pytestmark = pytest.mark.timeout(1800)

KIND = """while read -r _ place kind _; do [ "$place" != /models ] || echo "$kind" >&2; done </proc/self/mounts\n"""


@pytest.fixture
def node(cluster: Cluster, started: Started) -> str:
    """One that has the whole model, and a pod that goes on to read it."""
    first = started(cluster.workloads.inline("first", script=LOOP))
    cluster.rounds(first, more_than=1)
    name = cluster.node_of(first)
    version = cluster.kubernetes.get("node", name)["status"]["nodeInfo"]["kernelVersion"]
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 5):
        pytest.skip(f"Linux {version} has no native mounts")

    def whole() -> bool:
        return any(
            mount["bytes_cached"] >= mount["bytes_total"] > 0
            and mount["reference"].startswith(cluster.workloads.reference)
            for mount in cluster.driver.mounts(node=name)
        )

    cluster.kubernetes.until(whole, f"{name} has the whole model", about=first)
    return name


def test_a_native_mount_needs_no_driver(node: str, started: Started, cluster: Cluster) -> None:
    """The next pod of the node gets an overlay of the kernel's with the same bytes; a restart of the plugin does not touch it."""
    reader = started(cluster.workloads.inline("native", script=LOOP, node=node))
    rounds = cluster.rounds(reader, more_than=2)
    kind, *lines = cluster.kubernetes.logs(reader).splitlines()
    assert kind == "mounted as overlay"
    assert hashes(lines[: len(cluster.sums)]) == hashes(cluster.sums)
    cluster.driver.replace_pod(NODE_PLUGIN, node=node)
    cluster.rounds(reader, more_than=rounds + 2)
    served = [mount["served_by"] for mount in cluster.driver.mounts(node=node)]
    assert "native" in served, "the new plugin does not know the mount"


def test_a_pod_in_a_user_namespace_reads_by_fuse(node: str, started: Started, cluster: Cluster) -> None:
    """With `native: off` a pod with `hostUsers: false` gets a mount that can be id-mapped, though the whole model is there."""
    if not _can_have_user_namespaces(cluster, node):
        pytest.skip(f"the runtime of {node} has no user namespaces for pods")
    of = cluster.workloads
    reader = started(of.inline("user-namespace", script=KIND + SUMS, host_users=False, native="off", node=node))
    phase = cluster.kubernetes.until_phase(reader, "Succeeded", "Failed")
    lines = cluster.kubernetes.logs(reader).splitlines()
    kinds = [line for line in lines if line.startswith("fuse")]
    assert (phase, len(kinds)) == ("Succeeded", 1)
    assert sorted(set(lines) - set(kinds)) == cluster.sums


def _can_have_user_namespaces(cluster: Cluster, node: str) -> bool:
    handlers = cluster.kubernetes.get("node", node)["status"].get("runtimeHandlers", [])
    return any(handler.get("features", {}).get("userNamespaces") for handler in handlers)
