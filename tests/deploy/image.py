"""Builds the image of Dockerfile with buildah, and runs programs in it: no container engine is needed, and nothing is pulled."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tests.deploy.base import AUTHORITIES, BASE, base_image
from tests.deploy.chart import ROOT
from tests.deploy.emulation import NATIVE

_SETTINGS = {
    "/etc/uv/uv.toml": "native-tls = true\n",
    "/etc/pip.conf": f"[global]\ncert = {AUTHORITIES}\n",
}
_LIMIT_S = 3000
"""An emulated processor is some ten times slower."""


@dataclass(frozen=True)
class Buildah:
    """With a storage of its own below `root`; RUN and `run` are chroots, which any machine allows root to make.

    One that is `kept` is used again: it keeps the layers of a build for the next one.
    """

    root: Path
    kept: bool = False
    architecture: str = NATIVE

    @cached_property
    def _driver(self) -> str:
        """In a container, whose root may be an overlay itself, there are only whole copies: twice the time."""
        with tempfile.TemporaryDirectory(dir=self.root) as probe:
            storage = [f"--root={probe}/storage", f"--runroot={probe}/run", "--storage-driver=overlay"]
            answer = subprocess.run(["buildah", *storage, "info"], capture_output=True, check=False, timeout=60)
        return "vfs" if answer.returncode else "overlay"

    def command(self, *arguments: object) -> list[str]:
        storage = [f"--root={self.root / 'storage'}", f"--runroot={self.root / 'run'}"]
        return ["buildah", *storage, f"--storage-driver={self._driver}", *map(str, arguments)]

    def __call__(self, *arguments: object, limit_s: float = 60.0) -> str:
        return self._finished(self.command(*arguments), limit_s)

    def make_base(self) -> None:
        """Has the base image in the storage, under the name that the Dockerfile has for it."""
        if not self("images", "--quiet", f"--filter=reference={BASE}"):
            self("pull", "--quiet", f"docker-archive:{base_image(self.architecture)}", limit_s=120)

    def build(self, tag: str, *, stage: str = "", extras: str = "") -> None:
        """Builds all of it, or up to a stage; with extras of the package, as the Dockerfile wants them given."""
        volumes = []
        for number, (path, text) in enumerate(_SETTINGS.items()):
            (self.root / f"settings-{number}").write_text(text)
            volumes.append(f"--volume={self.root / f'settings-{number}'}:{path}:ro")
        options = ["--isolation=chroot", "--network=host", "--pull-never", f"--platform=linux/{self.architecture}"]
        options += ["--timestamp=0", f"--layers={str(self.kept).lower()}", f"--build-arg=EXTRAS={extras}"]
        # Two processors are busy with it for half a minute: others on the machine go first.
        build = self.command("build", *options, *volumes, f"--target={stage}", f"--tag={tag}", ROOT)
        self._finished(["nice", *build], _LIMIT_S)

    def manifest(self, tag: str) -> dict[str, Any]:
        inspected = json.loads(self("inspect", "--type=image", tag))
        return cast("dict[str, Any]", json.loads(inspected["Manifest"]))

    def files(self, tag: str) -> dict[str, tuple[object, ...]]:
        """All that is in the layers over the base's: by its name, what a digest of the image depends on."""
        found: dict[str, tuple[object, ...]] = {}
        with tempfile.TemporaryDirectory(dir=self.root) as name:
            directory = Path(name)
            self("push", "--quiet", tag, f"dir:{directory}", limit_s=300)
            layers = json.loads((directory / "manifest.json").read_text())["layers"]
            for number, layer in enumerate(layers[1:], start=1):
                with tarfile.open(directory / layer["digest"].partition(":")[2]) as tar:
                    for member in tar:
                        content = tar.extractfile(member) if member.isreg() else None
                        digest = hashlib.file_digest(content, "sha256").hexdigest() if content else member.linkname
                        attributes = (member.type, member.mode, member.uid, member.gid, member.mtime, digest)
                        found[f"{number}/{member.name}"] = attributes
        return found

    def _finished(self, command: list[str], limit_s: float) -> str:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s, cwd=self.root)
        assert answer.returncode == 0, f"{command}: {answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"
        return answer.stdout.strip()


@dataclass(frozen=True)
class Container:
    buildah: Buildah
    name: str

    def _command(self, command: tuple[object, ...], user: str, directory: Path) -> list[str]:
        options = ["--isolation=chroot", "--network=host", *([f"--user={user}"] if user else [])]
        return self.buildah.command("run", *options, f"--volume={directory}:/shared", self.name, "--", *command)

    def run(self, *command: object, user: str = "") -> str:
        """What it prints. It goes through files: in a chroot buildah loses the last of what passes its pipes, once in some
        hundred runs on a busy machine, and exits with 0 all the same."""
        with tempfile.TemporaryDirectory(dir=self.buildah.root) as name:
            directory = Path(name)
            directory.chmod(0o777)
            redirected = ("sh", "-c", 'exec "$@" > /shared/output 2> /shared/errors', "sh", *command)
            answer = subprocess.run(
                self._command(redirected, user, directory), capture_output=True, text=True, check=False, timeout=300
            )
            errors = directory / "errors"
            assert answer.returncode == 0, errors.read_text() if errors.exists() else answer.stderr
            return (directory / "output").read_text().strip()

    @contextmanager
    def running(self, *command: object, directory: Path, user: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """`directory` is /shared there."""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(self._command(command, user, directory), stdout=log, stderr=log)
            try:
                yield process
                assert process.poll() is None, "it ended"
            except AssertionError as error:
                log.seek(0)
                raise AssertionError(f"{error}\n{log.read().decode()[-3000:]}") from error
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
