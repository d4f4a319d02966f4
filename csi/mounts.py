"""Shared FUSE mounts and the binds that show them to pods: the publisher's view of the data plane.

One FUSE mount an artifact and view lives below `<kubelet>/plugins/csi.weightless.dev/mounts/`, where a restarted plugin can
bind from it again; volumes hold it by grants, and it goes with the last. Only the mount table is asked about mounts, never a
mount itself. Thread-safe; the calls of one mount take turns.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import structlog

from csi.targets import Target
from fuse.errors import Conflict, MountFailed, NotFound
from fuse.filesystem.table import View
from fuse.mounting import device
from fuse.mounting.manager import LostMount, ResolvedArtifact
from fuse.mounting.mountinfo import Entry, MountTable
from fuse.mounting.reasons import Reason
from fuse.mounting.status import Health, HolderTotals, MountStatus
from fuse.registry.access import Access
from fuse.spec import Prefetch, Verify

_IDENTITY = re.compile(r"[a-z2-7]{24}")
_MAX_LAYERS: Final = 16
"""How many mounts may lie upon each other at one target before we stop taking them away."""

Checkpoint = Callable[[str], None]
"""Called with the name of every step that was done: where a test kills the process, or an operation is given up."""

_log = structlog.get_logger()


class Manager(Protocol):
    """What is needed of `fuse.mounting.manager.MountManager`. A mount's id is the identity of what it shows."""

    on_gone: Callable[[MountStatus], None] | None

    def start(self, *, patient: bool = False) -> None: ...

    def wait_served(self, limit_s: float) -> bool: ...

    def lost(self) -> list[LostMount]: ...

    def resolve(
        self, reference: str, access: Access, view: View, *, cancel: threading.Event | None = None
    ) -> ResolvedArtifact: ...

    def acquire(
        self,
        artifact: ResolvedArtifact,
        mountpoint: Path,
        *,
        prefetch: Prefetch,
        grant: str,
        access: Access,
        verify: Verify = ...,
        checkpoint: Checkpoint = ...,
    ) -> str: ...

    def release(self, mount_id: str, grant: str) -> int: ...

    def unmount(self, mount_id: str, *, lazy: bool = False) -> object: ...

    def abandon(self, mountpoint: Path) -> None: ...

    def find(self, mountpoint: Path) -> str | None: ...

    def statuses(self) -> list[MountStatus]: ...

    def status(self, mount_id: str) -> MountStatus: ...

    def health(self, mount_id: str) -> Health: ...

    def served_by(self, mount_id: str) -> str: ...

    def totals(self) -> HolderTotals: ...

    def close(self, *, keep: bool) -> None: ...


def identity_of(artifact: ResolvedArtifact, verify: Verify = "lazy") -> str:
    """The name of the mount that shows this artifact: a hash, safe as a file name."""
    return artifact.identity_with(verify)


class SharedMounts:
    """The FUSE mounts of this node plugin, by identity."""

    def __init__(self, manager: Manager, directory: Path) -> None:
        self._manager = manager
        self.directory = directory
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Lock, int]] = {}

    def resolve(self, reference: str, access: Access, view: View, cancel: threading.Event) -> ResolvedArtifact:
        return self._manager.resolve(reference, access, view, cancel=cancel)

    def path(self, identity: str) -> Path:
        return self.directory / identity

    def is_live(self, identity: str) -> bool:
        """Whether the manager serves this mount, and the kernel still has it."""
        path = self.path(identity)
        return self._manager.find(path) is not None and MountTable.read().at(path) is not None

    def is_held(self, identity: str, grant: str) -> bool:
        """Whether the mount is live and stays as long as this grant is not dropped."""
        try:
            return self.is_live(identity) and grant in self._manager.status(identity).grants
        except NotFound:
            return False

    def health(self, identity: str) -> Health:
        """From memory, at once."""
        if self.is_left(identity):
            return Health(
                state="degraded", reason="a later version of weightless served it, and this one cannot: upgrade again"
            )
        try:
            return self._manager.health(identity)
        except NotFound:
            return Health(state="broken", reason="the file system is not mounted", reason_code=Reason.UNMOUNTED)

    def served_by(self, identity: str) -> str:
        """ "fuse" or "native", from memory; empty when nothing serves it."""
        return self._manager.served_by(identity)

    def hold(
        self,
        artifact: ResolvedArtifact,
        *,
        prefetch: Prefetch,
        verify: Verify,
        grant: str,
        access: Access,
        checkpoint: Checkpoint,
    ) -> None:
        """Mounts the artifact, or shares the mount that is there. Holding twice renews the credentials."""
        identity = identity_of(artifact, verify)
        path = self.path(identity)
        with self._turn(identity):
            if not self.is_live(identity) and not self._bind_back(identity):
                self._clear(identity)
                _make_directory(path)
            try:
                self._manager.acquire(
                    artifact,
                    path,
                    prefetch=prefetch,
                    verify=verify,
                    grant=grant,
                    access=access,
                    checkpoint=checkpoint,
                )
            except BaseException:
                if not self.is_live(identity):
                    _remove_directory(path)
                raise

    def drop(self, identity: str, grant: str, checkpoint: Checkpoint) -> None:
        """Gives the mount up, and unmounts it if nobody else holds it. Nothing if it is not held."""
        with self._turn(identity):
            if self._manager.find(self.path(identity)) is not None:
                remaining = self._manager.release(identity, grant)
                checkpoint("mount-released")
                if remaining:
                    return
            self._clear(identity)
            checkpoint("mount-unmounted")

    def is_left(self, identity: str) -> bool:
        """Whether the mount is there, and kept for a later version of the program, which alone can serve it."""
        left = any(lost.kept and lost.mount_id == identity for lost in self._manager.lost())
        return left and self._manager.find(self.path(identity)) is None

    def drop_grant(self, grant: str) -> None:
        """Gives up what is held by this name, wherever that is."""
        for status in self._manager.statuses():
            if grant in status.grants:
                self.drop(status.id, grant, lambda _: None)

    def sweep(self, wanted: dict[str, set[str]]) -> None:
        """Drops every grant, mount and directory that is not in `wanted` (grants by identity)."""
        for status in self._manager.statuses():
            if Path(status.mountpoint).parent != self.directory:
                continue
            for grant in set(status.grants) - wanted.get(status.id, set()):
                _log.info("orphan_grant_dropped", identity=status.id, grant=grant)
                self.drop(status.id, grant, lambda _: None)
        for name in sorted(os.listdir(self.directory)):
            if _IDENTITY.fullmatch(name) and name not in wanted:
                with self._turn(name):
                    self._clear(name)

    def _bind_back(self, identity: str) -> bool:
        """Somebody unmounted our mount point, while pods read on through their binds: those must not be lost to a new mount."""
        path = self.path(identity)
        if self._manager.find(path) is None:
            return False
        for target in self._manager.status(identity).targets:
            try:
                _make_directory(path)
                device.bind(Path(target), path)
            except MountFailed as error:
                _log.warning("bind_back_failed", source=target, mountpoint=str(path), error=error)
            else:
                return True
        return False

    def _clear(self, identity: str) -> None:
        """Takes away the mount, be it served or left by a dead process, and its directory."""
        path = self.path(identity)
        if self._manager.find(path) is not None:
            try:
                self._manager.unmount(identity)
            except Conflict as error:
                # Who looks into our own directory (an indexer, a shell) must not keep a pod from ending.
                _log.warning("unmount_lazy", mountpoint=str(path), error=error)
                self._manager.unmount(identity, lazy=True)
        self._manager.abandon(path)
        _unmount_layers(path, path)
        self._manager.unmount(identity)  # what only the keeper had of it
        _remove_directory(path)

    @contextmanager
    def _turn(self, identity: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._turns.get(identity, (threading.Lock(), 0))
            self._turns[identity] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                _, users = self._turns[identity]
                if users == 1:
                    del self._turns[identity]
                else:
                    self._turns[identity] = (lock, users - 1)


def shows(path: Path, mount: Path) -> bool:
    """Whether what is mounted at `path` is the file system that is mounted at `mount`."""
    table = MountTable.read()
    there, own = table.at(path), table.at(mount)
    return there is not None and own is not None and there.device == own.device


def bound(target: Target) -> Entry | None:
    """What is mounted at a target."""
    return MountTable.read().at(target.path)


def bind(source: Path, target: Target) -> None:
    """Shows the mount at the target, read-only, in place of what of ours is there; the directory is made. Raises MountFailed."""
    target.make()
    try:
        with target.place() as place:
            there = bound(target)
            if there is not None and there.ours and device.exchange(source, place):
                return
            _unmount_layers(target.path, place)
            device.bind(source, place)
    except (OSError, MountFailed) as error:
        cause = error.what if isinstance(error, MountFailed) else error.strerror
        raise MountFailed(f"cannot bind: {cause}", where=str(target.path)) from error


def unbind(target: Target) -> None:
    """Takes away whatever of ours is mounted at the target. Raises MountFailed, also for a mount that is not ours."""
    if bound(target) is None:
        return
    try:
        with target.place() as place:
            _unmount_layers(target.path, place)
    except OSError as error:
        raise MountFailed(f"cannot unmount: {error.strerror}", where=str(target.path)) from error


def binds_below(directory: Path) -> Sequence[Path]:
    """The places of all our mounts below a directory."""
    return [entry.mountpoint for entry in MountTable.read().below(directory) if entry.ours]


def _unmount_layers(path: Path, place: Path) -> None:
    """Unmounts at `path`, reached as `place`, until nothing is left."""
    for _ in range(_MAX_LAYERS):
        entry = MountTable.read().at(path)
        if entry is None:
            return
        if not entry.ours:
            raise MountFailed(
                f"{entry.file_system} is mounted there, which is not ours", where=str(path), fix="unmount it"
            )
        try:
            device.unmount(place)
        except Conflict as error:
            # Kubelet asks only when the pod's containers are gone. What still holds a file open (a scan of the node's disks) must
            # not keep the pod from ending: it loses the file.
            _log.warning("unmount_lazy", mountpoint=str(path), error=error.what)
            device.unmount(place, lazy=True)
    raise MountFailed("something mounts there again and again", where=str(path))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MountFailed(f"cannot make the mount point: {error.strerror}", where=str(path)) from error


def _remove_directory(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise MountFailed(f"cannot remove the mount point: {error.strerror}", where=str(path)) from error
