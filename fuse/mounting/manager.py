"""The FUSE mounts of one holder: made, shared, served whatever dies, and taken down. (`fuse.mounting.mounts` has all of them.)

Who may die: a worker (another takes the mount over), the fetcher (another is started, every mount attached and every grant given
anew), the keeper (another is filled), this process (its successor takes back what the keeper held, `start`), and the mount
itself, when a user unmounts it (`on_gone`). `fuse.mounting.supervisor` does the first two.

This puts the parts together and says who has a mount when. What the steps of making one are is `fuse.mounting.making`'s, which
ones there are `fuse.mounting.roll`'s, what a predecessor left `fuse.mounting.inheritance`'s.

Threads: every public method may be called from any thread. `Mount.lock` serialises what happens to one mount and may be held for
seconds; the roll's lock is held for moments, inside of it. Repairs run on threads of their own, so that the watch thread never
waits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog

from fuse import spec
from fuse.filesystem.table import View
from fuse.mounting import device, rundir
from fuse.mounting.chronicle import Chronicle
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.inheritance import Inheritance
from fuse.mounting.keeping import Keeping
from fuse.mounting.making import CHECKPOINTS, Maker
from fuse.mounting.mount import Mount, Use
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.reporting import Surroundings, describe, health
from fuse.mounting.roll import Roll
from fuse.mounting.spares import PAUSE_S as SPARE_PAUSE_S
from fuse.mounting.status import Health, HolderTotals, MountStatus
from fuse.mounting.supervisor import Supervisor
from fuse.mounting.values import HolderSettings, LostMount, ResolvedArtifact
from fuse.mounting.watch import Watch
from fuse.registry.access import Access

__all__ = ["CHECKPOINTS", "Health", "HolderSettings", "LostMount", "MountManager", "MountStatus", "ResolvedArtifact"]

_log = structlog.get_logger()


class MountManager:
    """Call `start` first, `close` last."""

    def __init__(self, settings: HolderSettings, *, on_gone: Callable[[MountStatus], None] | None = None) -> None:
        """`on_gone` is called, without locks, from a thread of the manager, when a mount was ended by somebody else."""
        self.settings = settings
        self.on_gone = on_gone
        self._mounts = Roll()
        self._run_lock = -1
        self._lock_path = settings.run_dir / f"{settings.name}.lock"
        self._watch: Watch
        self._keeping: Keeping
        self._supervisor: Supervisor
        self._maker: Maker
        self._inheritance: Inheritance
        self._around: Surroundings
        self._chronicle: Chronicle

    # ---- life of the holder ----

    def start(self, *, patient: bool = False) -> None:
        """Takes back what a predecessor of the same name left to the keeper; `wait_served` waits until those are served again.

        `patient`: mounts are there that were not unmounted, so a keeper that runs by itself is worth waiting for.

        Raises Conflict when another holder of this name runs, and a WeightlessError when the keeper cannot be had.
        """
        settings = self.settings
        rundir.ensure(settings.run_dir)
        self._run_lock = rundir.lock(self._lock_path, f"another holder named {settings.name!r}")
        with ExitStack() as undo:
            undo.callback(rundir.unlock, self._lock_path, self._run_lock)
            self._watch = Watch()
            undo.callback(self._watch.close)
            self._keeping = Keeping(
                settings.keeper or settings.run_dir / f"{settings.name}.keeper",
                self._watch,
                choice="none" if not settings.use_keeper else "external" if settings.keeper else "own",
                mounts=self._mounts.all,
                found=self._found_late,
                successor=settings.successor,
            )
            undo.callback(self._keeping.close, wait=False)
            self._supervisor = Supervisor(
                settings,
                self._watch,
                self._keeping,
                mounts=self._mounts.all,
                gone=self._kernel_ended,
                abort=self._aborted,
            )
            undo.callback(self._supervisor.close)
            self._maker = Maker(self._mounts, self._supervisor, self._keeping, settings.start_limit_s)
            self._inheritance = Inheritance(self._mounts, self._keeping, self._supervisor.vitals)
            self._around = Surroundings(
                fetcher=self._supervisor.fetcher, keeping=self._keeping, ledger=self._supervisor.ledger
            )
            self._chronicle = Chronicle(
                mounts=self._mounts.all, health=lambda mount: health(mount, self._around), refresh=self.statuses
            )
            for name, fds in self._keeping.open(patient=patient):
                self._inheritance.take(name, fds)
            undo.pop_all()
        for mount in self._mounts.all():
            self._supervisor.repair_soon(mount)
        self._chronicle.start()
        self._supervisor.spares.refill(SPARE_PAUSE_S if self._mounts else 0.0)

    def wait_served(self, limit_s: float) -> bool:
        """Whether all mounts have a worker that serves, after waiting for those that are being started."""
        return self._supervisor.wait_repaired(limit_s)

    def lost(self) -> list[LostMount]:
        """What could not be taken back."""
        return list(self._inheritance.lost)

    def close(self, *, keep: bool) -> None:
        """Ends every process that serves these mounts and returns when they are gone.

        With `keep` the mounts stay: requests wait until a successor serves them. Without, they are unmounted, busy ones lazily.
        """
        if not self._mounts.close():
            return
        if keep and not self._keeping.wait_renewed():
            _log.error("mounts_not_kept", reason="there is no keeper: they end with this process")
        self._chronicle.close()
        self._supervisor.stop_repairs()
        if keep:
            # All of them first: each may take a while to answer what it is answering.
            for mount in self._mounts.all():
                if (worker := mount.worker) is not None:
                    worker.stop()
        for mount in self._mounts.all():
            with mount.lock:
                if mount.live:
                    if not keep:
                        self._maker.unmount_anyhow(mount)
                    self._maker.end(mount, keep=keep)
        self._supervisor.close()
        self._keeping.close(wait=not keep)
        self._watch.close()
        rundir.unlock(self._lock_path, self._run_lock)

    @property
    def fetcher(self) -> FetcherClient:
        return self._supervisor.fetcher

    # ---- mounts ----

    def resolve(
        self, reference: str, access: Access, view: View, *, cancel: threading.Event | None = None
    ) -> ResolvedArtifact:
        """Proves that `access` may pull `reference` and learns its tree. Takes as long as the registry does."""
        resolved, content = self._supervisor.resolve(reference, access, view, cancel)
        if resolved.proven_at is not None:
            _log.warning("resolved_offline", reference=resolved.reference, proven_at=resolved.proven_at)
        return ResolvedArtifact(
            reference=resolved.reference,
            digest=resolved.digest,
            media_type=resolved.media_type,
            view=view,
            table=resolved.table,
            content=content,
            bytes_total=resolved.bytes_total,
            files=resolved.files,
            native=resolved.native and self.settings.native == "auto" and os.geteuid() == 0,
            label=self.settings.label,
            proven_at=resolved.proven_at,
        )

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
        """Mounts `artifact` at `mountpoint`, or shares its mount where it has one (maybe elsewhere: see `status`).

        `grant` names the user, for `release`; the same name again replaces its access. Returns the mount's id. On failure,
        also one raised by `checkpoint`, nothing is left behind.
        """
        use = Use(reference=artifact.reference, access=access, prefetch=prefetch, proven_at=artifact.proven_at)
        mine = Mount(
            spec=spec.MountSpec(
                parts=artifact.parts,
                table=artifact.table,
                reference=artifact.reference,
                prefetch=prefetch,
                verify=verify,
                native=artifact.shown_natively(verify),
                label=artifact.label,
                uid=os.geteuid(),
                gid=os.getegid(),
            ),
            mountpoint=mountpoint,
            bytes_total=artifact.bytes_total,
            by_fusermount=os.geteuid() != 0,
            uses={grant: use},
        )
        while True:
            with mine.lock:
                mount = self._mounts.enter(mine)
                if mount is mine:
                    self._maker.create(mine, artifact.content, checkpoint)
                    return mine.id
            with mount.lock:
                # Not live: it failed, or was unmounted, while we waited. Then the next turn makes it ours.
                if mount.live and device.gone(mount.device_fd):
                    self._maker.end(mount, keep=False)
                if mount.live:
                    self._maker.join(mount, grant, use, checkpoint)
                    return mount.id

    def release(self, mount_id: str, grant: str) -> int:
        """Takes back a grant; its credentials are forgotten. How many remain; the mount stays. Unknown names are no error."""
        mount = self._mounts.get(mount_id)
        if mount is None:
            return 0
        with mount.lock:
            if not mount.live:
                return 0
            self._maker.leave(mount, grant)
            return len(mount.uses)

    def unmount(self, mount_id: str, *, lazy: bool = False, unused_only: bool = False) -> bool:
        """Unmounts, whoever has a grant, and ends the worker. A mount that is not there is no error.

        One that is kept for a later version of the program is kept no longer; it is for the caller to unmount that.

        With `unused_only` nothing happens while anybody has a grant; the result says whether the mount is gone. Raises Conflict
        when it is busy (never if `lazy`), or mounted over; then nothing has changed.
        """
        mount = self._mounts.get(mount_id)
        if mount is None:
            self._inheritance.renounce(mount_id)
            return True
        if not unused_only:
            mount.ending = True
            self._supervisor.hurry(mount)
        with mount.lock:
            try:
                if unused_only and mount.live and mount.uses:
                    return False
                if mount.live:
                    self._maker.unmount(mount, lazy=lazy)
                    self._maker.end(mount, keep=False)
                return True
            finally:
                mount.ending = False
                if mount.live and (mount.worker is None or not mount.worker.alive):
                    self._supervisor.repair_soon(mount)

    def abandon(self, mountpoint: Path) -> None:
        """Ends the file system of ours at `mountpoint` if this holder does not serve it: who waits for it gets an error.

        A process that hangs, of a predecessor whose keeper died as well, may hold it open; its readers would wait for ever.
        """
        there = MountTable.read().at(mountpoint)
        if there is not None and there.ours and not there.native and self.find(mountpoint) is None:
            self._supervisor.connections.abort(there.minor)

    def status(self, mount_id: str) -> MountStatus:
        """Answers within about a second whatever the mount's processes do. Raises NotFound."""
        return describe([self._mounts.live(mount_id)], self._around)[0]

    def statuses(self) -> list[MountStatus]:
        """As `status`, of all mounts, in about the same time."""
        return describe([mount for mount in self._mounts.all() if mount.live], self._around)

    def health(self, mount_id: str) -> Health:
        """The condition of a mount from memory, at once whatever its processes do. Raises NotFound."""
        return health(self._mounts.live(mount_id), self._around)

    def served_by(self, mount_id: str) -> str:
        """As `MountStatus.served_by`, from memory; empty for a mount that is not there."""
        return "fuse" if mount_id in self else ""

    def totals(self) -> HolderTotals:
        """Sums of all mounts since `start`, from memory: as of the last time that each was asked."""
        ledger, fetcher, keeping = self._around.ledger, self._around.fetcher, self._keeping
        sums = ledger.all()
        return HolderTotals(
            reads=sums.reads,
            bytes_read=sums.bytes_read,
            waited_s=sums.waited_s,
            bytes_fetched=sums.bytes_fetched,
            requests=sums.requests,
            worker_restarts=sums.restarts,
            fetcher_restarts=fetcher.history.told.count,
            keeper_restarts=keeping.history.told.count,
            keeper_up=not keeping.away_since,
            fetcher_up=fetcher.pid is not None,
            changes=self._chronicle.changes(),
            reads_at_once=sums.at_once,
            counts=ledger.counts(),
            cache=ledger.cache,
        )

    def __contains__(self, mount_id: str) -> bool:
        return mount_id in self._mounts

    def find(self, mountpoint: Path) -> str | None:
        """The id of the mount at a real path."""
        return self._mounts.at(mountpoint)

    # ---- inside; no lock is held ----

    def _kernel_ended(self, mount: Mount) -> None:
        status = describe([mount], self._around)[0]
        with mount.lock:
            if not mount.live:
                return
            self._maker.end(mount, keep=False)
        if self.on_gone is not None:
            self.on_gone(status)

    def _aborted(self, mount: Mount) -> None:
        """What waits on it shall fail: the connection is ended, and its mount goes from the tree."""
        _log.error(
            "mount_aborted",
            mount=mount.id,
            mountpoint=str(mount.mountpoint),
            reason="its worker died with requests that no other can have (kernel older than 6.9)",
        )
        with mount.lock:
            if mount.live:
                self._supervisor.connections.abort(mount.minor)
                self._maker.unmount_anyhow(mount)
        self._kernel_ended(mount)

    def _found_late(self, name: str, fds: list[int]) -> None:
        """A keeper came back with what a predecessor had left to it."""
        self._inheritance.take(name, fds)
        mount = self._mounts.get(name)
        if mount is not None:
            self._supervisor.repair_soon(mount)
