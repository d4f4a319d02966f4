"""csi-sanity, the real program, against the command as it is deployed. `make conformance` runs it and shows its report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.conftest import need, need_program
from tests.csi.real import model_registry
from tests.support.controller import ControllerProcess
from tests.support.leaks import sandbox
from tests.support.node import Node

pytestmark = pytest.mark.kernel

VERSION: Final = "v5.6.0"
SPECS: Final = 31
"""All that apply to what is claimed; the others ask for snapshots, staging, expansion, listing, and skip themselves."""
REPORTS: Final = os.environ.get("WEIGHTLESS_REPORTS")
"""Where `make conformance` wants the reports."""


@pytest.fixture(scope="module")
def csi_sanity() -> Path:
    """The program, built once into the user's cache directory."""
    go = need_program("go", "golang-go")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "weightless-test" / "csi-sanity" / VERSION
    program = directory / "csi-sanity"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        module = f"github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@{VERSION}"
        environment = {**os.environ, "GOBIN": str(directory), "GOFLAGS": "-mod=mod"}
        built = subprocess.run(
            [go, "install", module], env=environment, cwd=directory, capture_output=True, text=True, check=False
        )
        need(built.returncode == 0, f"csi-sanity cannot be built: {built.stderr[-500:]}")
    return program


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


# A fresh machine downloads and compiles the program first.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["apart", "all"])
def test_the_program_passes_every_spec_that_applies(csi_sanity: Path, reference: str, mode: str) -> None:
    """No spec is skipped by a flag, nothing stands in for the controller, nothing is left on the node.

    `apart`: a node plugin and a controller without privileges, as a cluster has them; `all`: both in one process.
    """
    with sandbox() as place:
        node = Node(place, "--plain-http")
        if mode == "all":
            node.more = ("--mode", "all")
            with node:
                _run(csi_sanity, node, node.socket, reference, mode)
        else:
            with node, ControllerProcess(place, "--plain-http") as controller:
                _run(csi_sanity, node, controller.socket, reference, mode)


def _run(csi_sanity: Path, node: Node, controller: Path, reference: str, mode: str) -> None:
    root = node.sandbox.root
    parameters = root / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"reference": reference}))
    # The program makes its targets below a directory of its own: one of the shape that kubelet has.
    directory = node.kubelet / "plugins" / "kubernetes.io" / "csi"
    directory.mkdir(parents=True)
    report = Path(REPORTS or root).absolute() / f"csi-sanity-{mode}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    answer = subprocess.run(
        [
            csi_sanity,
            f"--csi.endpoint=unix://{node.socket}",
            f"--csi.controllerendpoint=unix://{controller}",
            f"--csi.mountdir={directory / 'sanity'}",
            f"--csi.stagingdir={root / 'staging'}",
            f"--csi.testvolumeparameters={parameters}",
            f"--ginkgo.junit-report={report}",
            "--ginkgo.no-color",
            *(("--ginkgo.v",) if REPORTS else ()),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if REPORTS:
        sys.stdout.write(answer.stdout)
    summary = re.search(r"Ran (\d+) of \d+ Specs.*?(\d+) Passed \S+ (\d+) Failed", answer.stdout, re.DOTALL)
    assert summary is not None, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert answer.returncode == 0, answer.stdout[-6000:]
    ran, passed, failed = (int(number) for number in summary.groups())
    assert (passed, failed) == (ran, 0)
    assert ran >= SPECS
    assert report.stat().st_size
    assert node.leftovers() == []
