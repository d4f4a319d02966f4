"""All mounts of a holder, whichever way each is served: by FUSE while it fills, or natively once everything is there.

Which way is decided when an artifact is resolved (`ResolvedArtifact.native`), and makes it another mount, with an id of its own:
who mounted before goes on with FUSE. Where the kernel cannot, after all, the same id is served by FUSE.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from fuse import spec
from fuse.errors import Cancelled, Conflict, WeightlessError
from fuse.filesystem.table import View
from fuse.mounting.manager import MountManager
from fuse.mounting.native import NativeMounts
from fuse.mounting.status import Health, HolderTotals, MountStatus
from fuse.mounting.values import HolderSettings, LostMount, ResolvedArtifact
from fuse.registry.access import Access

_log = structlog.get_logger()


class Mounts:
    """What `MountManager` is for FUSE alone, and its methods are meant as they are there."""

    def __init__(self, settings: HolderSettings, *, on_gone: Callable[[MountStatus], None] | None = None) -> None:
        self.settings = settings
        self.on_gone = on_gone
        self.by_fuse = MountManager(settings, on_gone=self._gone)
        self.native = NativeMounts(settings, lambda: self.by_fuse.fetcher)
        self.native.on_gone = self._gone
        self._choosing = threading.Lock()

    def start(self, *, patient: bool = False) -> None:
        self.by_fuse.start(patient=patient)
        try:
            self.native.start()
        except BaseException:
            self.by_fuse.close(keep=True)
            raise

    def wait_served(self, limit_s: float) -> bool:
        return self.by_fuse.wait_served(limit_s)

    def fetcher_wanted(self, *, then: Callable[[], None]) -> None:
        """Connects to the fetcher, in the background, before anybody needs it, and calls `then`."""

        def connect() -> None:
            with suppress(WeightlessError):
                self.by_fuse.fetcher.connection()
            then()

        threading.Thread(target=connect, name="fetcher-first", daemon=True).start()

    def lost(self) -> list[LostMount]:
        return self.by_fuse.lost()

    def close(self, *, keep: bool) -> None:
        self.native.close(keep=keep)
        self.by_fuse.close(keep=keep)

    def resolve(
        self, reference: str, access: Access, view: View, *, cancel: threading.Event | None = None
    ) -> ResolvedArtifact:
        return self.by_fuse.resolve(reference, access, view, cancel=cancel)

    def acquire(
        self,
        artifact: ResolvedArtifact,
        mountpoint: Path,
        *,
        prefetch: spec.Prefetch,
        grant: str,
        access: Access,
        verify: spec.Verify = "lazy",
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> str:
        mount_id = artifact.identity_with(verify)
        if artifact.shown_natively(verify):
            with self._choosing:
                if mount_id not in self.by_fuse and self._acquire_natively(
                    mount_id, artifact, mountpoint, grant, checkpoint
                ):
                    return mount_id
        return self.by_fuse.acquire(
            artifact, mountpoint, prefetch=prefetch, grant=grant, access=access, verify=verify, checkpoint=checkpoint
        )

    def release(self, mount_id: str, grant: str) -> int:
        if mount_id in self.native:
            return self.native.release(mount_id, grant)
        return self.by_fuse.release(mount_id, grant)

    def unmount(self, mount_id: str, *, lazy: bool = False) -> None:
        if mount_id in self.native:
            self.native.unmount(mount_id, lazy=lazy)
        else:
            self.by_fuse.unmount(mount_id, lazy=lazy)

    def abandon(self, mountpoint: Path) -> None:
        self.by_fuse.abandon(mountpoint)

    def find(self, mountpoint: Path) -> str | None:
        return self.native.find(mountpoint) or self.by_fuse.find(mountpoint)

    def status(self, mount_id: str) -> MountStatus:
        return self.native.status(mount_id) if mount_id in self.native else self.by_fuse.status(mount_id)

    def statuses(self) -> list[MountStatus]:
        return self.by_fuse.statuses() + self.native.statuses()

    def health(self, mount_id: str) -> Health:
        if mount_id in self.native:
            return self.native.health(mount_id)
        return self.by_fuse.health(mount_id)

    def served_by(self, mount_id: str) -> str:
        return "native" if mount_id in self.native else self.by_fuse.served_by(mount_id)

    def totals(self) -> HolderTotals:
        return self.by_fuse.totals()

    # ---- inside ----

    def _acquire_natively(
        self, mount_id: str, artifact: ResolvedArtifact, mountpoint: Path, grant: str, checkpoint: Callable[[str], None]
    ) -> bool:
        try:
            self.native.acquire(mount_id, artifact, mountpoint, grant=grant, checkpoint=checkpoint)
        except (Cancelled, Conflict):
            raise
        except WeightlessError as error:
            _log.warning(
                "native_mount_refused", mount=mount_id, mountpoint=str(mountpoint), error=error, instead="fuse"
            )
            return False
        return True

    def _gone(self, status: MountStatus) -> None:
        if self.on_gone is not None:
            self.on_gone(status)
