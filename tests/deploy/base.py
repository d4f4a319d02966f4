"""A base image without a registry to pull it from: a Debian that debootstrap makes, under the name that the Dockerfile asks for.

It is made once for each release of Debian, architecture and recipe (this file), and kept in the user's cache directory, as an
archive of the kind that `docker save` writes: any storage takes it in within a second. It trusts whom this machine trusts, for
its packages come the way that this machine's do. May be called by several processes at once: the first makes what the others
wait for.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BASE: Final = "docker.io/library/debian:bookworm-slim"
SUITE: Final = "bookworm"
MIRROR: Final = os.environ.get("WEIGHTLESS_DEBIAN_MIRROR", "http://deb.debian.org/debian")
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
SCRATCH: Final = Path(os.environ.get("TMPDIR", "/var/tmp"))
"""A real disk: a root file system and what is built on it are some hundred megabytes."""

_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightless-test" / "image-base"
_UNUSED_DAYS: Final = 30
_UNREAD: Final = ["doc", "groff", "info", "linda", "lintian", "locale", "man"]
"""What a slim image leaves out of /usr/share; of `doc` the copyrights stay."""
_DPKG: Final = "".join(
    f"{line}\n"
    for line in (
        "force-unsafe-io",
        *(f"path-exclude /usr/share/{name}/*" for name in _UNREAD),
        "path-include /usr/share/doc/*/copyright",
    )
)
_LIMIT_S: Final = 3000
"""An emulated processor is some ten times slower."""


def base_image(architecture: str) -> Path:
    """The archive; made now, in half a minute, if there is none."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    archive = _CACHE / f"{SUITE}-{architecture}-{_key()}.tar"
    with _alone(_CACHE / f"{architecture}.lock"):
        if not archive.exists():
            _forget_unused()
            _make(archive, architecture)
        os.utime(archive)
    return archive


def _key() -> str:
    """Of all that it depends on; the release file names every package with its sum."""
    with urllib.request.urlopen(f"{MIRROR}/dists/{SUITE}/InRelease", timeout=60) as answer:
        parts = [answer.read(), AUTHORITIES.read_bytes(), MIRROR.encode(), Path(__file__).read_bytes()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_unused() -> None:
    """Those of releases and recipes that were; by age, since several work trees may share the directory."""
    for archive in _CACHE.glob("*.tar*"):
        if archive.stat().st_mtime < time.time() - _UNUSED_DAYS * 86400:
            archive.unlink()


def _make(archive: Path, architecture: str) -> None:
    with tempfile.TemporaryDirectory(prefix="wl-base-", dir=SCRATCH) as directory:
        tree, layer = Path(directory) / "root", Path(directory) / "layer.tar"
        _bootstrap(tree, architecture)
        left_out = [f"--exclude=./usr/share/{name}/*" for name in _UNREAD if name != "doc"]
        left_out += ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
        subprocess.run(["tar", "-C", tree, *left_out, "--sort=name", "--numeric-owner", "-cf", layer, "."], check=True)
        unfinished = archive.with_suffix(".tar-unfinished")
        _write(unfinished, layer, architecture)
        unfinished.rename(archive)


def _bootstrap(tree: Path, architecture: str) -> None:
    configuration = tree / "etc/dpkg/dpkg.cfg.d/slim"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(_DPKG)
    # What it mounts is gone with its namespace, however it ends. Others on the machine go first.
    debootstrap = ["debootstrap", "--variant=minbase", f"--arch={architecture}", SUITE, tree, MIRROR]
    made = subprocess.run(
        ["nice", "unshare", "--mount", *debootstrap], capture_output=True, text=True, check=False, timeout=_LIMIT_S
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    authorities = tree / "usr/local/share/ca-certificates/machine.crt"
    authorities.parent.mkdir(parents=True, exist_ok=True)
    authorities.write_bytes(AUTHORITIES.read_bytes())


def _write(archive: Path, layer: Path, architecture: str) -> None:
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    texts = {
        "config.json": {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": "debootstrap"}],
        },
        "manifest.json": [{"Config": "config.json", "RepoTags": [BASE], "Layers": [layer.name]}],
    }
    with tarfile.open(archive, "w") as tar:
        tar.add(layer, layer.name)
        for name, content in texts.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
