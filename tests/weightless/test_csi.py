"""`weightless csi`: which mode gets which options."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from weightless.app import app


@pytest.fixture
def asked(monkeypatch):
    """What the commands behind the modes were called with."""
    found = []
    monkeypatch.setattr("weightless.commands.node.run", lambda settings, **options: found.append(("node", options)))
    monkeypatch.setattr(
        "weightless.commands.controller.run", lambda settings, **options: found.append(("controller", options))
    )
    return found


def invoke(*words, **environment):
    return CliRunner().invoke(app, list(words), env={"CSI_ENDPOINT": None, "NODE_ID": None, **environment})


@pytest.mark.parametrize("words", [["csi"], ["csi", "--mode", "node"], ["node"]], ids=" ".join)
def test_a_node_is_the_default_and_has_an_older_name(asked, words):
    """Manifests of before there was a controller go on working; the socket may come from the environment, as CSI wants."""
    assert not invoke(*words, CSI_ENDPOINT="unix:///csi/csi.sock", NODE_ID="worker-1").exit_code
    ((mode, options),) = asked
    assert ("node", False) == (mode, options["with_controller"])
    assert ("unix:///csi/csi.sock", "worker-1", None) == (
        options["endpoint"],
        options["node_id"],
        options["max_volumes"],
    )


def test_all_is_a_node_with_a_controller(asked):
    """With every option of a node."""
    assert not invoke("csi", "--mode", "all", "--max-volumes", "20").exit_code
    ((mode, options),) = asked
    assert ("node", True, 20) == (mode, options["with_controller"], options["max_volumes"])


def test_a_controller_has_a_socket_and_metrics(asked):
    """A node's name in the environment, which pods of both kinds may share, is no mistake."""
    words = ("csi", "--mode", "controller", "--endpoint", "/csi/csi.sock", "--metrics-address", ":9808")
    assert not invoke(*words, NODE_ID="worker-1").exit_code
    assert [("controller", {"endpoint": "/csi/csi.sock", "metrics_address": ":9808"})] == asked


@pytest.mark.parametrize(
    "option",
    [
        ("--kubelet-dir", "/k"),
        ("--state-dir", "/s"),
        ("--keeper", "/k.sock"),
        ("--max-volumes", "0"),
        ("--native", "off"),
        ("--without-resend", "wait"),
    ],
    ids=lambda option: option[0],
)
def test_a_controller_refuses_what_is_a_nodes(asked, option):
    """Something that would have no effect was meant for something."""
    result = invoke("csi", "--mode", "controller", *option)
    assert 1 == result.exit_code
    assert option[0] in result.output
    assert [] == asked


def test_a_socket_is_needed():
    """Misconfiguration ends it at once, with the option's name."""
    result = invoke("csi", "--mode", "controller")
    assert 1 == result.exit_code
    assert "--endpoint is missing" in result.output
