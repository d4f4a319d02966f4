"""A data plane without data: FUSE mounts that are real for the kernel and that nobody serves.

Whoever looks into such a mount hangs, so a test that ends has shown that nobody does.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from csi.mounts import identity_of
from fuse.credentials.given import Given
from fuse.errors import NotFound, Unauthenticated
from fuse.filesystem.table import View
from fuse.mounting import device
from fuse.mounting.access import Admission
from fuse.mounting.manager import LostMount, ResolvedArtifact
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.status import Health, HolderTotals, MountStatus
from fuse.registry.access import Access, Credential, Endpoint
from fuse.spec import Prefetch, Verify

REFERENCE = "registry.example.com/models/tiny:v1"
PRIVATE = "registry.example.com/private/tiny:v1"
PASSWORD = "canary-hunter2"
NOBODY = Given()


class FakeAccess:
    """Puts what a request brought into the access, as `AccessReader` does: its secret, or the token for `registry`."""

    def __init__(self) -> None:
        self.lifetime_s = math.inf
        """Of what is given out."""
        self.remembered = False
        """Whether passwords are said to come from memory, unless fresh ones are asked for."""
        self.asked: list[bool] = []
        """Each question, and whether it was for fresh credentials."""
        self.looks = 0
        """How often it was looked whether something has changed."""
        self.failing_looks: tuple[int, ...] = ()
        """Which of these looks fail."""
        self.written: Hashable = None
        """What the administrator wrote."""
        self.of_mirror = ""
        """By which those come that are for a mirror, if there is one."""
        self.ambient = ""
        """The driver's own password, for who brings none."""
        self.fresh_password = ""
        """Instead of the others, where fresh credentials are asked for."""
        self.fresh_rung = ""
        """By which those come, if not by the same."""
        self.on_admit: Callable[[str, threading.Event | None], None] = lambda _reference, _cancel: None

    def admit(
        self, reference: str, given: Given = NOBODY, *, cancel: threading.Event | None = None, fresh: bool = False
    ) -> Admission:
        self.asked.append(fresh)
        self.on_admit(reference, cancel)
        host = reference.partition("/")[0]
        credential, rung = None, "anonymous"
        if "registry" in given.tokens:
            rung, credential = "pod-identity", Credential(username="pod", password=given.tokens["registry"].text)
        elif given.secrets:
            rung = "publish-secret"
            credential = Credential(username=given.secrets["username"], password=given.secrets["password"])
        elif self.ambient:
            rung, credential = "driver-secret", Credential(username="driver", password=self.ambient)
        if fresh and self.fresh_password:
            credential = Credential(username="fresh", password=self.fresh_password)
            rung = self.fresh_rung or rung
        endpoint = Endpoint(url=f"https://{host}", credential=credential, origin=True)
        return Admission(
            access=Access(registry=host, endpoints=(endpoint,)),
            named_in=given.named_in,
            rung=rung,  # type: ignore[arg-type]
            rungs=frozenset({rung, self.of_mirror}),  # type: ignore[arg-type]
            ends_at=time.monotonic() + self.lifetime_s,
            remembered=self.remembered and not fresh,
        )

    def marker(self) -> Hashable:
        self.looks += 1
        if self.looks in self.failing_looks:
            raise OSError(5, "Input/output error")
        return self.written


class FakeManager:
    """Behaves as `MountManager` promises to, without workers, fetcher and keeper."""

    def __init__(self) -> None:
        self.on_gone: Callable[[MountStatus], None] | None = None
        self.on_resolve: Callable[[str, threading.Event | None], None] = lambda _reference, _cancel: None
        self.on_acquire: Callable[[], None] = lambda: None
        self.condition = Health()
        self.label = ""
        """Of the node's configuration. Nothing is really mounted with a label."""
        self.resolved: list[tuple[str, bool]] = []
        """Each reference that was asked for, and whether credentials came with it."""
        self.passwords: set[str] = set()
        """That may pull what is private, besides `PASSWORD`."""
        self.mounts: dict[str, tuple[int, Path]] = {}
        self.grants: dict[str, dict[str, Access]] = {}
        self.started = False
        self.left: list[LostMount] = []
        self.closed_with: bool | None = None
        self._lock = threading.RLock()

    def start(self, *, patient: bool = False) -> None:
        self.started = True

    def wait_served(self, limit_s: float) -> bool:
        return True

    def lost(self) -> list[LostMount]:
        return self.left

    def resolve(
        self, reference: str, access: Access, view: View, *, cancel: threading.Event | None = None
    ) -> ResolvedArtifact:
        credential = access.endpoints[0].credential
        self.resolved.append((reference, credential is not None))
        self.on_resolve(reference, cancel)
        if "/missing/" in reference:
            raise NotFound("no such repository", where=reference)
        if "/private/" in reference and (credential is None or credential.password not in {PASSWORD, *self.passwords}):
            raise Unauthenticated("credentials are not accepted", where=reference, fix="give a secret")
        name = reference.partition("@")[0]
        digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        return ResolvedArtifact(
            reference=f"{name}@{digest}",
            digest=digest,
            media_type="application/vnd.cncf.model.manifest.v1+json",
            view=view,
            table="sha256:0",
            content=b"",
            bytes_total=4096,
            files=3,
            label=self.label,
        )

    def acquire(
        self,
        artifact: ResolvedArtifact,
        mountpoint: Path,
        *,
        prefetch: Prefetch,
        grant: str,
        access: Access,
        verify: Verify = "lazy",
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> str:
        del prefetch
        name = identity_of(artifact, verify)
        with self._lock:
            if name not in self.mounts:
                fd = device.open_device()
                try:
                    device.mount(fd, device.usable_mountpoint(mountpoint))
                    checkpoint("mounted")
                    self.on_acquire()
                    checkpoint("live")
                except BaseException:
                    device.unmount(mountpoint, lazy=True)
                    os.close(fd)
                    raise
                self.mounts[name] = (fd, mountpoint)
            self.grants.setdefault(name, {})[grant] = access
        return name

    def release(self, mount_id: str, grant: str) -> int:
        with self._lock:
            grants = self.grants.get(mount_id, {})
            grants.pop(grant, None)
            return len(grants)

    def unmount(self, mount_id: str, *, lazy: bool = False) -> None:
        with self._lock:
            self.left = [lost for lost in self.left if lost.mount_id != mount_id]
            if mount_id not in self.mounts:
                return
            fd, mountpoint = self.mounts[mount_id]
            device.unmount(mountpoint, lazy=lazy)
            os.close(fd)
            del self.mounts[mount_id]
            self.grants.pop(mount_id, None)

    def abandon(self, mountpoint: Path) -> None:
        """Nothing is served by anybody else here."""

    def find(self, mountpoint: Path) -> str | None:
        with self._lock:
            return next((name for name, (_, path) in self.mounts.items() if path == mountpoint), None)

    def statuses(self) -> list[MountStatus]:
        return [self.status(name) for name in list(self.mounts)]

    def status(self, mount_id: str) -> MountStatus:
        if mount_id not in self.mounts:
            raise NotFound("no such mount", where=mount_id)
        mountpoint = self.mounts[mount_id][1]
        table = MountTable.read()
        entry = table.at(mountpoint)
        others = table.of_device(entry.device) if entry else ()
        return MountStatus(
            id=mount_id,
            mountpoint=str(mountpoint),
            reference="",
            digest="",
            worker_pid=None,
            keeper_pid=None,
            fetcher_pid=None,
            holder_pid=os.getpid(),
            bytes_cached=0,
            bytes_total=0,
            condition=self.condition,
            targets=tuple(str(other.mountpoint) for other in others if other.mountpoint != mountpoint),
            grants=tuple(self.grants.get(mount_id, {})),
        )

    def health(self, mount_id: str) -> Health:
        return self.status(mount_id).condition

    def served_by(self, mount_id: str) -> str:
        return "fuse" if mount_id in self.mounts else ""

    def totals(self) -> HolderTotals:
        return HolderTotals()

    def close(self, *, keep: bool) -> None:
        self.closed_with = keep
        for fd, mountpoint in self.mounts.values():
            if not keep:
                device.unmount(mountpoint, lazy=True)
            os.close(fd)
        self.mounts.clear()
