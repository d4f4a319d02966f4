"""The image: it can be built, it is small and holds no tools, and the driver runs in it.

One build is part of `make test`. `make image-test` makes two more, to see that builds are the same and that traces can be had;
with PLATFORM it does all that for another architecture, under emulation.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from csi.identity import DRIVER_NAME
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from tests.conftest import need, need_program
from tests.deploy.base import BASE, SCRATCH, base_image
from tests.deploy.chart import ROOT
from tests.deploy.emulation import ARCHITECTURES, NATIVE, emulated, handler
from tests.deploy.image import Buildah, Container
from tests.support.waiting import until
from weightless import __version__

pytestmark = pytest.mark.timeout(3600)

FULL = os.environ.get("WEIGHTLESS_IMAGE") == "full"
ARCHITECTURE = (os.environ.get("WEIGHTLESS_IMAGE_PLATFORM") or f"linux/{NATIVE}").removeprefix("linux/")

MOST_MB = 140
"""Over the base: Python, its packages, libfuse3."""
STARTS_WITHIN_S = 120.0
"""An emulated processor is some ten times slower."""

needs_more_builds = pytest.mark.skipif(not FULL, reason="part of make image-test only")
Image = Callable[[str], Container]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    need(os.geteuid() == 0, "building an image without an engine needs root")
    need_program("buildah", "buildah")
    need_program("debootstrap", "debootstrap")
    need(ARCHITECTURE in ARCHITECTURES, f"images are for {' and '.join(ARCHITECTURES)}, not for {ARCHITECTURE!r}")
    emulator = ARCHITECTURE == NATIVE or handler(ARCHITECTURE).exists()
    need(emulator, "there is no emulator (Debian package qemu-user-static; make image-test installs it)")
    with emulated(ARCHITECTURE):
        try:
            found = base_image(ARCHITECTURE)
        except OSError as error:
            need(False, f"Debian's packages cannot be had: {error}")
        yield found


@pytest.fixture(scope="module")
def buildah(base: Path) -> Iterator[Buildah]:
    with tempfile.TemporaryDirectory(prefix="wl-image-", dir=SCRATCH) as root:
        found = Buildah(Path(root), architecture=ARCHITECTURE)
        found.make_base()
        yield found


@pytest.fixture(scope="module")
def container(buildah: Buildah) -> Container:
    buildah.build("weightless:test")
    return Container(buildah, buildah("from", "--pull-never", "localhost/weightless:test"))


def test_what_stands_in_for_the_base_has_its_name(buildah: Buildah) -> None:
    """The Dockerfile is built as it is: it finds a Debian where it looks for one."""
    (default,) = re.findall(r"^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert f"docker.io/library/{default}" == BASE
    assert len(buildah.manifest(BASE)["layers"]) == 1


def test_the_command_runs_as_nobody_in_particular(container: Container) -> None:
    """Unless the pod says otherwise."""
    assert container.run("weightless", "--version") == f"weightless {__version__}"
    assert container.run("id", "-u") == "65532"


def test_it_is_for_the_architecture_that_was_asked_for(container: Container) -> None:
    assert container.run("uname", "-m") == ARCHITECTURES[ARCHITECTURE]


def test_every_part_can_be_loaded(container: Container) -> None:
    """The worker's libfuse and gRPC's library are there, though nothing that compiles is."""
    modules = "csi.plugin, fuse.worker.__main__, fuse.fetch.__main__, fuse.keeper, pyfuse3, grpc"
    assert container.run("/opt/weightless/bin/python", "-c", f"import {modules}; print('all')") == "all"


def test_nothing_is_in_it_that_does_not_run(container: Container) -> None:
    """No compiler, no package manager of Python, no setuid program but the base's own, no tests."""
    tools = ("gcc", "cc", "make", "pip", "uv", "fusermount3", "git", "weightless")
    look = 'for each; do if command -v "$each"; then :; fi; done'
    assert container.run("sh", "-c", look, "sh", *tools) == "/opt/weightless/bin/weightless"
    unwanted = ("-perm", "/6000", "-o", "-path", "*/site-packages/tests")
    assert container.run("find", "/opt/weightless", *unwanted, user="0") == ""


def test_it_is_small(container: Container) -> None:
    """A bound on what is added to the base."""
    layers = container.buildah.manifest("localhost/weightless:test")["layers"]
    assert sum(layer["size"] for layer in layers[1:]) < MOST_MB * 1_000_000


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
        until(socket.exists, "the controller listens", within_s=STARTS_WITHIN_S)
        with grpc.insecure_channel(f"unix://{socket}") as channel:
            identity = rpc.IdentityStub(channel)
            assert identity.Probe(pb.ProbeRequest(), timeout=30, wait_for_ready=True).ready.value
            answer = identity.GetPluginInfo(pb.GetPluginInfoRequest(), timeout=30)
    assert (answer.name, answer.vendor_version) == (DRIVER_NAME, __version__)


def test_the_keeper_listens_in_it(container: Container, tmp_path: Path) -> None:
    """As root, as its pod runs it."""
    socket = tmp_path / "keeper.sock"
    command = ("weightless", "keeper", "--socket", "unix:///shared/keeper.sock")
    with container.running(*command, directory=tmp_path, user="0"):
        until(socket.exists, "the keeper listens", within_s=STARTS_WITHIN_S)


@needs_more_builds
def test_two_builds_are_the_same(container: Container) -> None:
    """Of one source on one base: the same files with the same attributes, and so the same digest."""
    buildah = container.buildah
    buildah.build("weightless:again")
    one, other = (buildah.files(f"localhost/weightless:{tag}") for tag in ("test", "again"))
    assert sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)) == []
    assert buildah.manifest("localhost/weightless:test") == buildah.manifest("localhost/weightless:again")


@needs_more_builds
def test_traces_can_be_had(container: Container) -> None:
    """Where the build was given the extra, and not otherwise: the image is smaller without."""
    buildah = container.buildah
    buildah.build("weightless:traces", extras="--extra otel")
    traced = Container(buildah, buildah("from", "--pull-never", "localhost/weightless:traces"))
    asked = "{'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:4318'}"
    program = f"from fuse import tracing; tracing.start('plugin', {asked}); print('on:', tracing.on()); tracing.stop()"
    recorded = [each.run("/opt/weightless/bin/python", "-c", program) for each in (container, traced)]
    assert ["on: False" in recorded[0], "on: True" in recorded[1]] == [True, True]
