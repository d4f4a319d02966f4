"""The chart in the hands of helm, while a pod reads: an upgrade, the way back, and a cleanup that comes too early."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Cluster, Started
from tests.cluster.installation import Chart
from tests.cluster.workloads import LOOP

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def chart(cluster: Cluster) -> Chart:
    if not isinstance(cluster.installation, Chart):
        pytest.skip("the driver was installed by manifests")
    return cluster.installation


def test_an_upgrade_and_a_rollback_go_by_a_reader(chart: Chart, started: Started, cluster: Cluster) -> None:
    """Another configuration replaces every plugin, and the rollback does so again: no read fails, none differs."""
    reader = started(cluster.workloads.inline("upgraded", script=LOOP, native="off"))
    rounds = cluster.rounds(reader, more_than=2)
    for change in (lambda: chart.upgrade("config.log-level=debug"), chart.rollback):
        before = _configuration(cluster)
        change()
        cluster.driver.until_ready()
        assert _configuration(cluster) != before
        rounds = cluster.rounds(reader, more_than=rounds + 2)


def test_a_cleanup_under_a_pod_is_refused(chart: Chart, started: Started, cluster: Cluster) -> None:
    """Helm names the pod that still uses a model, and the driver stays."""
    reader = started(cluster.workloads.inline("in-use", script=LOOP))
    cluster.rounds(reader, more_than=1)
    with pytest.raises(AssertionError, match=f"end them first: .*{reader}"):
        chart.upgrade("cleanup.enabled=true")
    assert cluster.driver.plugins()
    cluster.rounds(reader, more_than=2)


def _configuration(cluster: Cluster) -> str:
    return str(cluster.driver.plugins()["spec"]["template"]["metadata"]["annotations"]["weightless.dev/configuration"])
