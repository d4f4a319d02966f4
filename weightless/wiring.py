"""From the command line's settings to the parts of `fuse.mounting`: the one place that knows which option goes where."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fuse import logs
from fuse.artifact.reference import Reference
from fuse.credentials.ladder import Ladder
from fuse.credentials.providers import Annotations, Providers
from fuse.errors import InvalidConfig, InvalidRequest
from fuse.filesystem.table import View
from fuse.mounting import device, fusermount, overlay, rundir, selinux
from fuse.mounting.access import AccessReader
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.fetcher_start import FetcherSettings
from fuse.mounting.manager import HolderSettings
from fuse.spec import WithoutResend
from weightless.config import CredentialsSection
from weightless.options import Settings


def begin(settings: Settings, process: str = "weightless", *, level: str | None = None) -> Path:
    """Logging, and the run directory. Raises InvalidConfig."""
    logs.configure(process, level or settings.log_level)
    return rundir.ensure(rundir.run_dir().absolute())


def fetcher_settings(settings: Settings, run_dir: Path, *, log_to_stderr: bool = False) -> FetcherSettings:
    return FetcherSettings(
        cache_dir=settings.cache_dir,
        run_dir=run_dir,
        quota_bytes=settings.config.quota_bytes,
        free_space_fraction=settings.config.cache.free_space,
        connections=settings.config.fetch.connections,
        bytes_per_s=settings.config.fetch.bytes_per_s,
        registries=settings.config.fetch.registries,
        log_level=settings.log_level,
        log_to_stderr=log_to_stderr,
    )


def holder_settings(
    settings: Settings,
    run_dir: Path,
    *,
    name: str,
    log_to_stderr: bool,
    log_level: str | None = None,
    keeper: Path | None = None,
    native_dir: Path | None = None,
    spare_worker: bool = False,
    successor: Callable[[], Sequence[int]] | None = None,
    without_resend: WithoutResend | None = None,
) -> HolderSettings:
    return HolderSettings(
        cache_dir=settings.cache_dir,
        run_dir=run_dir,
        name=name,
        quota_bytes=settings.config.quota_bytes,
        free_space_fraction=settings.config.cache.free_space,
        connections=settings.config.fetch.connections,
        bytes_per_s=settings.config.fetch.bytes_per_s,
        registries=settings.config.fetch.registries,
        log_level=log_level or settings.log_level,
        log_to_stderr=log_to_stderr,
        keeper=keeper,
        successor=successor,
        native=settings.config.mount.native or "auto",
        label=selinux_label(settings),
        copy_out=copies_out(settings),
        native_dir=native_dir,
        spare_worker=spare_worker,
        without_resend=without_resend or settings.config.mount.without_resend or "wait",
    )


def selinux_label(settings: Settings) -> str:
    """What is mounted where nobody asks for another label. One setting is for all nodes, with SELinux and without."""
    wanted = settings.config.mount.selinux_context or ""
    return wanted if selinux.active() else ""


def copies_out(settings: Settings) -> bool:
    """Whether large members of archives are to become files of the cache: where nobody could show them natively it is a waste."""
    wanted = "off" not in (settings.config.mount.native, settings.config.cache.native_copies)
    return wanted and os.geteuid() == 0 and overlay.kernel_can()


def needed(value: str | None, option: str, example: str) -> str:
    """Of `weightless csi`. Raises InvalidRequest where neither option nor file says it."""
    if value:
        return value
    raise InvalidRequest(
        f"{option} is missing", where="csi", fix=f"give it ({example}), or write it into weightless.toml"
    )


def socket_path(text: str, option: str) -> Path:
    """The path in `unix:///path` or `/path`. Raises InvalidRequest, naming `option`."""
    path = text.removeprefix("unix://")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidRequest(
            f"{text!r:.200} is not the absolute path of a socket",
            where=option,
            fix="give it as unix:///path/keeper.sock",
        )
    return Path(path)


def fetcher(settings: Settings, run_dir: Path) -> FetcherClient:
    """A command's connection to the fetcher, opened with the first request. Close it."""
    return FetcherClient(fetcher_settings(settings, run_dir))


def access_reader(
    settings: Settings, *, local_allowed: bool = True, annotations: Annotations | None = None
) -> AccessReader:
    """Who runs a command may reach what listens on this machine, and has docker's credentials; a pod that names a registry may
    not, and has those of the configuration's [credentials]. `annotations` reads those of pods' ServiceAccounts.

    Raises InvalidConfig for a directory of hosts.toml files that is not there: it was named, so something in it was to count.
    """
    if settings.certs_dir is not None and not settings.certs_dir.is_dir():
        raise InvalidConfig(
            "the directory of hosts.toml files does not exist, or is none",
            where=str(settings.certs_dir),
            fix="create it, or correct --certs-dir (certs-dir in weightless.toml)",
        )
    return AccessReader(
        certs_dir=settings.certs_dir,
        plain_http=settings.plain_http,
        credentials=None if local_allowed else ladder(settings.config.credentials, annotations),
        local_allowed=local_allowed,
        offline_s=settings.config.registry.offline_s,
        allowed=settings.config.registry.allowed,
    )


def ladder(section: CredentialsSection, annotations: Annotations | None = None) -> Ladder:
    """The credentials that count for pods. Raises InvalidConfig for files that are named and cannot be used."""
    providers = None
    if section.provider_config is not None and section.provider_bin_dir is not None:
        providers = Providers(
            Path(section.provider_config),
            Path(section.provider_bin_dir).absolute(),
            user=section.provider_user,
            annotations=annotations,
        )
    found = Ladder(
        allow=section.allow,
        docker_config=Path(section.docker_config) if section.docker_config is not None else None,
        providers=providers,
    )
    found.check()
    return found


def check_reference(reference: str) -> None:
    """Raises InvalidReference, before anything is started for it."""
    Reference.parse(reference)


def view(exclude: tuple[str, ...], *, exclude_weights: bool) -> View:
    return View(exclude=exclude, exclude_weights=exclude_weights)


def unmount_path(path: Path, *, lazy: bool) -> None:
    """Takes a mount out of the tree that no holder knows. Raises Conflict when it is busy."""
    if os.geteuid() == 0:
        device.unmount(path, lazy=lazy)
    else:
        fusermount.unmount(path, lazy=lazy)
