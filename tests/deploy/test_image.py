"""The image: it can be built, it is small and holds no tools, and the driver runs in it. `make image-test`, some five minutes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi.identity import DRIVER_NAME
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from tests.conftest import need, need_program
from tests.deploy.image import Buildah, Container
from tests.support.waiting import until
from weightless import __version__

pytestmark = pytest.mark.timeout(1500)

MOST_MB = 140
"""Over the base: Python, its packages, libfuse3."""


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    if os.environ.get("WEIGHTLESS_IMAGE") != "build":
        pytest.skip("part of make image-test only")
    need(os.geteuid() == 0, "building an image without an engine needs root")
    need_program("buildah", "buildah")
    need_program("debootstrap", "debootstrap")
    with tempfile.TemporaryDirectory(prefix="wl-image-", dir="/var/tmp") as root:
        found = Buildah(Path(root))
        found.make_base()
        found.build("weightless:test")
        yield found


@pytest.fixture(scope="module")
def container(buildah: Buildah) -> Iterator[Container]:
    name = buildah("from", "--pull-never", "localhost/weightless:test")
    yield Container(buildah, name)
    buildah("rm", name)


def test_the_command_runs_as_nobody_in_particular(container: Container) -> None:
    """Unless the pod says otherwise."""
    assert container.run("weightless", "--version") == f"weightless {__version__}"
    assert container.run("id", "-u") == "65532"


def test_every_part_can_be_loaded(container: Container) -> None:
    """The worker's libfuse and gRPC's library are there, though nothing that compiles is."""
    modules = "csi.plugin, fuse.worker.__main__, fuse.fetch.__main__, fuse.keeper, pyfuse3, grpc"
    assert container.run("/opt/weightless/bin/python", "-c", f"import {modules}; print('all')") == "all"


def test_nothing_is_in_it_that_does_not_run(container: Container) -> None:
    """No compiler, no package manager of Python, no setuid program but the base's own, no tests; a bound on the size."""
    for program in ("gcc", "cc", "make", "pip", "uv", "fusermount3", "git"):
        assert container.run("sh", "-c", f"command -v {program} || echo none") == "none"
    assert container.run("find", "/opt/weightless", "-perm", "/6000", user="0") == ""
    assert container.run("find", "/opt/weightless", "-path", "*/site-packages/tests", user="0") == ""
    kilobytes = sum(
        int(line.split()[0])
        for line in container.run("du", "-sk", "/opt/weightless", "/usr/lib/python3.11", user="0").splitlines()
    )
    assert kilobytes < MOST_MB * 1000


def test_byte_code_goes_by_content(container: Container) -> None:
    """So it is the same in every build, and valid whatever the time stamps: flags 3 in its header (PEP 552)."""
    program = (
        "import pathlib, fuse; files = list(pathlib.Path(fuse.__file__).parent.rglob('*.pyc'));"
        "print({file.read_bytes()[4] for file in files}, len(files) > 50)"
    )
    assert container.run("/opt/weightless/bin/python", "-c", program) == "{3} True"


def test_the_controller_answers_in_it(container: Container, tmp_path: Path) -> None:
    """As its pod runs it, and is probed."""
    os.chown(tmp_path, 65532, 65532)
    socket = tmp_path / "csi.sock"
    command = ("weightless", "csi", "--mode", "controller", "--endpoint", "unix:///shared/csi.sock")
    with container.running(*command, directory=tmp_path):
        until(socket.exists, "the controller listens")
        with grpc.insecure_channel(f"unix://{socket}") as channel:
            identity = rpc.IdentityStub(channel)
            assert identity.Probe(pb.ProbeRequest(), timeout=10, wait_for_ready=True).ready.value
            answer = identity.GetPluginInfo(pb.GetPluginInfoRequest(), timeout=10)
    assert (answer.name, answer.vendor_version) == (DRIVER_NAME, __version__)


def test_the_keeper_listens_in_it(container: Container, tmp_path: Path) -> None:
    """As root, as its pod runs it."""
    socket = tmp_path / "keeper.sock"
    command = ("weightless", "keeper", "--socket", "unix:///shared/keeper.sock")
    with container.running(*command, directory=tmp_path, user="0"):
        until(socket.exists, "the keeper listens")
