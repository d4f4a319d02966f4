"""The programs of a cluster that are built from their Go modules, and kept between runs.

`modules/NAME` pins what is built, and everything that goes into it, by go.mod and go.sum. The first build takes a quarter of an
hour and more on two processors; what has been built is found again by a hash of those files. Needs the Go module proxy, so it
runs outside the machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightless-test" / "cluster"

_MODULES: Final = Path(__file__).parent / "modules"


@dataclass(frozen=True, slots=True)
class Programs:
    """Directories with programs in them."""

    kubernetes: Path
    """kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kubectl"""
    containerd: Path
    """containerd, its shim, ctr"""
    runc: Path
    sidecars: Path
    """csi-provisioner, and what stands in for the registrar and the liveness probe"""


def build() -> Programs:
    release = re.search(r"k8s\.io/kubernetes v(\S+)", (_MODULES / "kubernetes" / "go.mod").read_text())
    assert release is not None
    return Programs(
        kubernetes=_built("kubernetes", linker_flags=_kubernetes_version(release[1])),
        containerd=_built("containerd"),
        runc=_built("runc", tags="seccomp", cgo=True),
        sidecars=_built("sidecars"),
    )


def _kubernetes_version(release: str) -> str:
    """Without it the programs take themselves for v0.0.0, and each other for too old."""
    major, minor, _ = release.split(".", 2)
    values = {"gitVersion": f"v{release}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{name}={value}" for package in packages for name, value in values.items())


def _built(name: str, *, linker_flags: str = "", tags: str = "", cgo: bool = False) -> Path:
    module = _MODULES / name
    # Debian's Go is too old for these modules, so it is not among the packages that `scripts/setup.sh cluster` installs.
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise SystemExit(f"{name} is built from its Go module: please install Go 1.26.8 or newer (https://go.dev/dl)")
    place = CACHE / f"{name}-{_hash(module, linker_flags, tags)}"
    if place.exists():
        return place
    print(f"cluster-test: building {name} of {module.relative_to(Path.cwd())}, once", flush=True)
    fresh = CACHE / f"{name}.{os.getpid()}"
    fresh.mkdir(parents=True)
    options = ["-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", f"-s -w {linker_flags}"]
    try:
        subprocess.run(
            ["nice", "-n", "19", go, "build", *options, "-o", f"{fresh}/", "tool"],
            cwd=module,
            env={**os.environ, "CGO_ENABLED": "1" if cgo else "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"},
            check=True,
        )
        fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return place


def _hash(module: Path, *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for file in sorted(path for path in module.rglob("*") if path.is_file()):
        digest.update(f"\0{file.relative_to(module)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
