"""Builds the image of Dockerfile with buildah, and runs programs in it: without a container engine, and without pulling anything.

What stands in for the base is a root file system that debootstrap makes, under the same name. It trusts the authorities that this
machine trusts, for its packages come the way that this machine's do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.chart import ROOT

BASE = "docker.io/library/debian:bookworm-slim"
MIRROR = os.environ.get("WEIGHTLESS_DEBIAN_MIRROR", "http://deb.debian.org/debian")
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_SETTINGS = {
    "/etc/uv/uv.toml": "native-tls = true\n",
    "/etc/pip.conf": f"[global]\ncert = {_AUTHORITIES}\n",
}


@dataclass(frozen=True)
class Buildah:
    """With a storage of its own below `root`; RUN and `run` are chroots, which any machine allows root to make.

    One that is `kept` is used again: it keeps the layers of a build for the next one.
    """

    root: Path
    kept: bool = False

    def command(self, *arguments: object) -> list[str]:
        driver = "overlay" if self.kept else "vfs"
        storage = [f"--root={self.root / 'storage'}", f"--runroot={self.root / 'run'}", f"--storage-driver={driver}"]
        return ["buildah", *storage, *map(str, arguments)]

    def __call__(self, *arguments: object, limit_s: float = 60.0) -> str:
        answer = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=limit_s, cwd=self.root
        )
        assert answer.returncode == 0, f"{arguments}: {answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"
        return answer.stdout.strip()

    def make_base(self) -> None:
        """Some 200 MB."""
        tree = self.root / "base"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", tree, MIRROR],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert made.returncode == 0, made.stdout[-2000:]
        authorities = tree / "usr/local/share/ca-certificates/machine.crt"
        authorities.parent.mkdir(parents=True, exist_ok=True)
        authorities.write_bytes(_AUTHORITIES.read_bytes())
        archive = self.root / "base.tar"
        subprocess.run(["tar", "-C", tree, "--exclude=./var/cache/apt/archives", "-cf", archive, "."], check=True)
        shutil.rmtree(tree)
        container = self("from", "scratch")
        self("add", "--quiet", container, archive, "/", limit_s=120)
        self("commit", "--quiet", "--rm", container, BASE, limit_s=120)
        archive.unlink()

    def build(self, tag: str, *, stage: str = "") -> None:
        """Builds all of it, or up to a stage."""
        volumes = []
        for number, (path, text) in enumerate(_SETTINGS.items()):
            (self.root / f"settings-{number}").write_text(text)
            volumes.append(f"--volume={self.root / f'settings-{number}'}:{path}:ro")
        layers = f"--layers={str(self.kept).lower()}"
        options = ["--isolation=chroot", "--network=host", "--pull-never", "--timestamp=0", layers]
        self("build", *options, *volumes, f"--target={stage}", f"--tag={tag}", ROOT, limit_s=900)


@dataclass(frozen=True)
class Container:
    buildah: Buildah
    name: str

    def _command(self, command: tuple[object, ...], user: str, directory: Path | None) -> list[str]:
        options = ["--isolation=chroot", "--network=host", *([f"--user={user}"] if user else [])]
        options += [f"--volume={directory}:/shared"] if directory else []
        return self.buildah.command("run", *options, self.name, "--", *command)

    def run(self, *command: object, user: str = "") -> str:
        answer = subprocess.run(
            self._command(command, user, None), capture_output=True, text=True, check=False, timeout=300
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

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
