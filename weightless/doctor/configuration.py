"""Checks of what an administrator wrote: hosts.toml, docker's config, [credentials]. They read these files, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fuse.credentials.dockerconfig import DockerConfig
from fuse.errors import WeightlessError
from fuse.registry.hosts import load_access
from weightless import wiring
from weightless.config import CredentialsSection
from weightless.doctor.finding import Finding, failed, ok, skipped, warning

_ANY: Final = "_default"
_SAMPLE: Final = "registry.invalid"
"""Stands for a registry that only `_default` is for."""


def hosts(certs_dir: Path | None) -> Iterator[Finding]:
    """Each directory is read as a mount would read it, and each fault told, not only the first."""
    check = "hosts.toml"
    if certs_dir is None:
        yield skipped(check, "there is no directory of hosts.toml files")
        return
    try:
        names = sorted(entry.name for entry in certs_dir.iterdir() if entry.is_dir())
    except OSError as error:
        yield warning(
            check, f"{certs_dir} cannot be read: {error.strerror}", "correct --certs-dir (certs-dir), or its rights"
        )
        return
    faults = 0
    for name in names:
        try:
            load_access(
                host_of(name), certs_dir=certs_dir, plain_http=False, credential=lambda _host: None, local_allowed=False
            )
        except WeightlessError as error:
            faults += 1
            yield failed(check, error)
    if not faults:
        yield ok(check, f"{len(names)} registries in {certs_dir}")


def host_of(directory: str) -> str:
    """The host that containerd means by the name of a directory: `host_5000_` is `host:5000`."""
    if directory == _ANY:
        return _SAMPLE
    host, underscore, port = directory.removesuffix("_").rpartition("_")
    return f"{host}:{port}" if directory.endswith("_") and underscore and port.isdecimal() else directory


def docker(directory: Path | None = None) -> Finding:
    try:
        DockerConfig.load(directory)
    except WeightlessError as error:
        return failed("docker config", error)
    return ok("docker config", "readable, or not there")


def of_pods(section: CredentialsSection, *, used: bool) -> Finding:
    """What counts for volumes of pods. `used`: a node plugin is configured here."""
    check = "pod credentials"
    if not used and section == CredentialsSection():
        return skipped(check, "no node plugin is configured here")
    try:
        wiring.ladder(section)
    except WeightlessError as error:
        return failed(check, error)
    return ok(check, f"usable; allowed are {', '.join(section.allow)}")
