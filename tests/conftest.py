"""What every test shares: what the machine must have, and the rule that in CI nothing may be missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling, Scheduling

pytest_plugins = ["tests.support.faulttable"]

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def need(condition: bool, reason: str) -> None:
    """Skips the test with `reason` where a prerequisite is missing; in CI that is a failure."""
    if condition:
        return
    if IN_CI:
        pytest.fail(f"prerequisite missing in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def need_program(name: str, package: str) -> str:
    """The path of a program, or the test is skipped (failed in CI)."""
    path = shutil.which(name)
    need(path is not None, f"{name} is not installed (Debian package {package}; run make setup)")
    assert path is not None
    return path


@pytest.fixture(autouse=True)
def _kernel_prerequisites(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kernel"):
        need(os.geteuid() == 0, "mounting without fusermount3 needs root")
        need(Path("/dev/fuse").exists(), "/dev/fuse is missing (modprobe fuse)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first, so that no process is alone with it in the end."""
    slow_first = ["faults", "test_image.py", "e2e"]
    items.sort(
        key=lambda item: min(
            (slow_first.index(name) for name in (item.path.parent.name, item.path.name) if name in slow_first),
            default=9,
        )
    )


class _Together(LoadFileScheduling):
    """`--dist loadfile`: the tests of a file run in one process, and so does all of the fault suite, lest it disturb itself.

    Groups by marks (`--dist loadgroup`) are lost on the way from pytest 9.2 to xdist 3.8.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "faults" if file.startswith("tests/faults/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    return _Together(config, log) if config.getvalue("dist") == "loadfile" else None
