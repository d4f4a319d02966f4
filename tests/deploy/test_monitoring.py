"""Dashboard and alerts: they ask for metrics that there are, by labels that these have, of the nodes that are meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from fuse.mounting.reasons import Reason
from tests.deploy.chart import CHART, ROOT, Helm, Objects

pytestmark = pytest.mark.timeout(600)

ALERTS = CHART / "alerts" / "weightless.yaml"
DASHBOARD = CHART / "dashboards" / "weightless.json"
PAGE = ROOT / "docs" / "metrics.md"
GIVEN = {"instance", "job", "le", "node"}
"""Labels that Prometheus adds, or a histogram has."""


def documented() -> dict[str, set[str]]:
    """Labels by metric. tests/e2e/test_seen.py compares that page with what a plugin exports."""
    rows = re.findall(r"^\| `([a-z_]+)` \| \w+ \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)
        elif isinstance(part, promql_parser.MatrixSelector):
            found.append(part.vector_selector)

    # Grafana puts the interval in.
    promql_parser.walk(promql_parser.parse(re.sub(r"\$__\w+", "5m", expression)), visit)
    assert found, expression
    yield from {str(each): each for each in found}.values()


def expressions(file: Path) -> list[str]:
    if file == DASHBOARD:
        panels = json.loads(file.read_text())["panels"]
        return [target["expr"] for panel in panels if panel["type"] != "row" for target in panel["targets"]]
    if file == ALERTS:
        return [rule["expr"] for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
    blocks: list[str] = re.findall(r"```promql\n(.*?)```", file.read_text(), re.DOTALL)
    lines = re.sub(r"^#.*$", "", "\n".join(blocks), flags=re.MULTILINE).splitlines()
    return [line for line in lines if line]


@pytest.mark.parametrize("file", [DASHBOARD, ALERTS, PAGE], ids=lambda file: file.name)
def test_what_is_asked_for_is_there(file: Path) -> None:
    """Each expression is PromQL; its metrics and labels are documented, and the reasons in it are ours."""
    metrics = documented()
    for expression in expressions(file):
        for each in selectors(expression):
            assert each.name is not None
            if each.name == "up":
                continue
            name = re.sub(r"_bucket$", "", each.name)
            assert name in metrics, expression
            for matcher in each.matchers.matchers:
                assert matcher.name in metrics[name] | GIVEN, (expression, matcher.name)
                if matcher.name == "reason":
                    assert set(matcher.value.split("|")) <= set(Reason), expression


def test_the_dashboard_shows_nearly_all_and_only_of_the_nodes_that_were_chosen() -> None:
    """Each metric of ours is on a panel; each panel has a place of its own."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = set()
    for expression in expressions(DASHBOARD):
        for each in selectors(expression):
            assert ("instance", "$instance") in {(one.name, one.value) for one in each.matchers.matchers}, expression
            asked.add(re.sub(r"_bucket$", "", str(each.name)))
    assert {name for name in documented() if name.startswith("weightless_")} <= asked
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_alert_says_what_it_is_and_stands_in_the_page() -> None:
    """OPERATIONS.md has a row for each, and for no other."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    section = (
        (ROOT / "docs" / "OPERATIONS.md").read_text().partition("\n## What to alert on\n")[2].partition("\n## ")[0]
    )

    assert [rule["alert"] for rule in rules] == re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} == rule["annotations"].keys()


def test_the_chart_gives_the_rules_to_the_operator(helm: Helm, full: Objects) -> None:
    """As they are, but for the job, which is called what the PodMonitor calls it; off by default."""
    (rule,) = full.of("PrometheusRule")
    (named,) = helm.objects("full", "nameOverride=models").of("PrometheusRule")
    text = json.dumps(named)

    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())
    assert ('job=\\"models\\"' in text, 'job=\\"weightless\\"' in text) == (True, False)
    assert helm.objects("default").of("PrometheusRule") == []


def test_an_instance_is_a_node(full: Objects) -> None:
    """Alerts and dashboard name it; the address of a pod would say nothing."""
    (endpoint,) = full.one("PodMonitor")["spec"]["podMetricsEndpoints"]

    assert {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"} in endpoint["relabelings"]
