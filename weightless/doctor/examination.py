"""Looks at this machine, and has the checks judge. It reads, connects and opens; it changes nothing.

A check whose probe fails is a finding as well: what cannot be looked at is often what is wrong. Mounts are not looked into.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from csi.volumes import VolumeRecord
from fuse import wire
from fuse.cache.layout import examine
from fuse.errors import WeightlessError
from fuse.fetch.protocol import SOCKET_NAME
from fuse.mounting import control, rundir, selinux
from fuse.mounting.mountinfo import MountTable, resolve
from fuse.registry.transport import Transport
from weightless import wiring
from weightless.doctor import configuration, processes, registry, storage, system
from weightless.doctor.finding import Finding, failed, skipped, warning
from weightless.doctor.processes import Answer
from weightless.doctor.storage import Directory
from weightless.options import Settings

_FUSE: Final = Path("/dev/fuse")
_KUBELET: Final = "/var/lib/kubelet"
_STATE: Final = "/var/lib/weightless"
_TIME_ERROR: Final = 5
"""Of adjtimex(2): the clock is not synchronised."""
_CONNECT_LIMIT_S: Final = 2.0


def examine_node(settings: Settings, reference: str | None) -> Iterator[Finding]:
    """All findings, in the order in which a person would look. `reference`: whose registry is asked; None asks nobody."""
    root = os.geteuid() == 0
    node = settings.config.node
    kubelet_dir = Path(node.kubelet_dir or _KUBELET)
    endpoint = node.endpoint or os.environ.get("CSI_ENDPOINT", "")
    table = MountTable.read()
    parts: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("kernel", lambda: system.kernel(platform.release())),
        ("overlay", lambda: [system.overlay(Path("/proc/filesystems").read_text(), root=root)]),
        ("FUSE device", lambda: [_fuse_device(_FUSE)]),
        ("fusermount3", lambda: [_fusermount(root=root)]),
        ("rights", lambda: [system.rights(_effective_capabilities(), root=root)]),
        ("SELinux", lambda: [_labels(settings.config.mount.selinux_context or "")]),
        ("open files", lambda: [system.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])]),
        ("clock", lambda: [system.clock(time.time(), synchronised=_clock_is_synchronised())]),
        ("propagation", lambda: [_propagation(kubelet_dir, table)]),
        ("cache", lambda: _cache(settings)),
        ("state", lambda: _state(Path(node.state_dir or _STATE), used=bool(endpoint))),
        (
            "run directory",
            lambda: storage.usable("run directory", look(rundir.run_dir()), choice=f"set {rundir.VARIABLE}"),
        ),
        ("hosts.toml", lambda: configuration.hosts(settings.certs_dir)),
        ("docker config", lambda: [configuration.docker()]),
        ("pod credentials", lambda: [configuration.of_pods(settings.config.credentials, used=bool(endpoint))]),
        ("processes", lambda: _processes(settings, endpoint, table)),
    ]
    if reference is not None:
        parts.append(("registry", lambda: _registry(settings, reference, for_pods=bool(endpoint))))
    for name, part in parts:
        try:
            yield from part()
        except WeightlessError as error:
            yield failed(name, error)
        except OSError as error:
            yield warning(name, f"cannot be looked at: {error}", "run it as root, in the plugin's pod or on the node")


# ---- probes ----


def _fuse_device(path: Path) -> Finding:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return system.fuse_device(path, None, 0)
    refusal = 0
    if stat.S_ISCHR(mode):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            refusal = error.errno or errno.EIO
    return system.fuse_device(path, mode, refusal)


def _fusermount(*, root: bool) -> Finding:
    path = shutil.which("fusermount3")
    return system.fusermount(path, Path(path).stat().st_mode if path else 0, root=root)


def _effective_capabilities() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("CapEff:")), "")


def _labels(label: str) -> Finding:
    active = selinux.active()
    known = selinux.knows(label) if active and label else None
    return system.labels(system.SELinux(active, selinux.enforcing(), known), label)


def _clock_is_synchronised() -> bool | None:
    # struct timex, all zero: with modes 0 the kernel only tells. It is 208 bytes; what is more is for luck.
    answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    return None if answer < 0 else answer != _TIME_ERROR


def _propagation(kubelet_dir: Path, table: MountTable) -> Finding:
    try:
        return system.propagation(resolve(kubelet_dir / "pods", table).parent, table)
    except FileNotFoundError:
        return skipped("propagation", f"no kubelet here: {kubelet_dir} is not there (--config, [node] kubelet-dir)")


def look(path: Path) -> Directory:
    """Never at a mount of ours; a directory that is missing has the properties of where it would be made."""
    exists, place = True, path
    while True:
        try:
            found = place.stat()
            break
        except FileNotFoundError:
            exists, place = False, place.parent
        except NotADirectoryError:
            return Directory(path=path, exists=False, is_directory=False)
    disk = os.statvfs(place)
    entry = MountTable.read().holding(place.resolve())
    return Directory(
        path=path,
        exists=exists,
        is_directory=stat.S_ISDIR(found.st_mode),
        mode=found.st_mode,
        owner=found.st_uid,
        file_system=entry.file_system if entry else "",
        read_only=bool(disk.f_flag & os.ST_RDONLY),
        writable=os.access(place, os.W_OK | os.X_OK),
        total_bytes=disk.f_blocks * disk.f_frsize,
        free_bytes=disk.f_bavail * disk.f_frsize,
    )


def _cache(settings: Settings) -> Iterator[Finding]:
    seen = look(settings.cache_dir)
    config = settings.config
    yield from storage.cache(seen, quota_bytes=config.quota_bytes, free_space=config.cache.free_space)
    if seen.exists and seen.is_directory:
        examine(settings.cache_dir)


def _state(path: Path, *, used: bool) -> Iterator[Finding]:
    """Of a node plugin; where none was ever configured, there is nothing to see."""
    if not used and not path.exists():
        yield skipped("state", "no node plugin has run here")
        return
    yield from storage.usable("state", look(path), choice="state-dir in [node]")
    if (path / "volumes").is_dir():
        files = sorted((path / "volumes").glob("*.json"))
        yield storage.records(sum(not _is_record(file) for file in files), len(files))


def _is_record(path: Path) -> bool:
    with suppress(OSError, ValueError, RecursionError):  # of JSON that is none, or no UTF-8
        return msgspec.json.decode(path.read_bytes(), type=VolumeRecord).name == path.stem
    return False


def _processes(settings: Settings, endpoint: str, table: MountTable) -> Iterator[Finding]:
    node = settings.config.node
    if endpoint:
        path = Path(endpoint.removeprefix("unix:").removeprefix("//"))
        yield processes.listener("node plugin", path, _answer(path, socket.SOCK_STREAM), wanted=True)
    if node.keeper:
        path = wiring.socket_path(node.keeper, "keeper in [node]")
        yield processes.listener("keeper", path, _answer(path, socket.SOCK_SEQPACKET), wanted=True)
    path = settings.cache_dir / SOCKET_NAME
    yield processes.listener("fetcher", path, _answer(path, socket.SOCK_SEQPACKET), wanted=False)
    found = []
    for holder in control.holders(rundir.run_dir()):
        try:
            found += holder.statuses()
        except WeightlessError as error:
            yield failed("holder", error, "warning")
    yield from processes.mounts(found)
    yield from system.leftovers(table, {mount.mountpoint for mount in found})


def _answer(path: Path, kind: socket.SocketKind) -> Answer:
    """Whether somebody listens; nothing is said to them. Raises PermissionError for what this user may not ask."""
    try:
        if kind is socket.SOCK_SEQPACKET:
            wire.connect(path).close()
        else:
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.settimeout(_CONNECT_LIMIT_S)
                sock.connect(str(path))
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except PermissionError:
        raise
    except OSError:
        return "refuses"
    return "answers"


def _registry(settings: Settings, reference: str, *, for_pods: bool) -> Iterator[Finding]:
    """On a node as for a pod that brings no credentials; elsewhere as for a command."""
    access = wiring.access_reader(settings, local_allowed=not for_pods).access(reference)
    with Transport() as transport:
        yield from registry.registry(reference, access, registry.ask_for_manifest(reference, transport))
