"""The FUSE mounts of one holder: made, shared, served whatever dies, and taken down. (`fuse.mounting.mounts` has all of them.)

Who may die: a worker (another takes the mount over), the fetcher (another is started, every mount attached and every grant given
anew), the keeper (another is filled), this process (its successor takes back what the keeper held, `start`), and the mount
itself, when a user unmounts it (`on_gone`). `fuse.mounting.supervisor` does the first two.

Threads: every public method may be called from any thread. `_lock` guards the dictionary of mounts and is held for moments;
`Mount.lock` serialises what happens to one mount and may be held for seconds. It is taken before `_lock`, never inside of it.
Repairs run on threads of their own, so that the watch thread never waits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import structlog

from fuse import spec, wire
from fuse.errors import Cancelled, Conflict, MountFailed, NotFound, WeightlessError
from fuse.filesystem.table import View
from fuse.mounting import device, fusermount, process, rundir
from fuse.mounting.chronicle import Chronicle
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.keeping import Keeping
from fuse.mounting.mount import Mount, Newer, Use, from_kept
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.reporting import Surroundings, describe, health
from fuse.mounting.spares import PAUSE_S as SPARE_PAUSE_S
from fuse.mounting.status import Health, HolderTotals, MountStatus
from fuse.mounting.supervisor import Supervisor
from fuse.mounting.values import HolderSettings, LostMount, ResolvedArtifact
from fuse.mounting.watch import Watch
from fuse.registry.access import Access

__all__ = ["CHECKPOINTS", "Health", "HolderSettings", "LostMount", "MountManager", "MountStatus", "ResolvedArtifact"]

CHECKPOINTS: Final = ("attached", "mounted", "kept", "started", "live")
"""What `acquire` has done each time that it calls `checkpoint`; for a mount that is shared only the last one."""

_log = structlog.get_logger()


class MountManager:
    """Call `start` first, `close` last."""

    def __init__(self, settings: HolderSettings, *, on_gone: Callable[[MountStatus], None] | None = None) -> None:
        """`on_gone` is called, without locks, from a thread of the manager, when a mount was ended by somebody else."""
        self.settings = settings
        self.on_gone = on_gone
        self._mounts: dict[str, Mount] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._lost: list[LostMount] = []
        self._left: set[str] = set()
        """Names that the keeper holds for a later version of the program."""
        self._run_lock = -1
        self._lock_path = settings.run_dir / f"{settings.name}.lock"
        self._watch: Watch
        self._keeping: Keeping
        self._supervisor: Supervisor
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
                mounts=self._snapshot,
                found=self._found_late,
                successor=settings.successor,
            )
            undo.callback(self._keeping.close, wait=False)
            self._supervisor = Supervisor(
                settings,
                self._watch,
                self._keeping,
                mounts=self._snapshot,
                gone=self._kernel_ended,
                abort=self._aborted,
            )
            undo.callback(self._supervisor.close)
            self._around = Surroundings(
                fetcher=self._supervisor.fetcher, keeping=self._keeping, ledger=self._supervisor.ledger
            )
            self._chronicle = Chronicle(
                mounts=self._snapshot, health=lambda mount: health(mount, self._around), refresh=self.statuses
            )
            for name, fds in self._keeping.open(patient=patient):
                self._take_back(name, fds)
            undo.pop_all()
        for mount in self._snapshot():
            self._supervisor.repair_soon(mount)
        self._chronicle.start()
        self._supervisor.spares.refill(SPARE_PAUSE_S if self._mounts else 0.0)

    def wait_served(self, limit_s: float) -> bool:
        """Whether all mounts have a worker that serves, after waiting for those that are being started."""
        return self._supervisor.wait_repaired(limit_s)

    def lost(self) -> list[LostMount]:
        """What could not be taken back."""
        return list(self._lost)

    def close(self, *, keep: bool) -> None:
        """Ends every process that serves these mounts and returns when they are gone.

        With `keep` the mounts stay: requests wait until a successor serves them. Without, they are unmounted, busy ones lazily.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if keep and not self._keeping.wait_renewed():
            _log.error("mounts_not_kept", reason="there is no keeper: they end with this process")
        self._chronicle.close()
        self._supervisor.stop_repairs()
        if keep:
            # All of them first: each may take a while to answer what it is answering.
            for mount in self._snapshot():
                if (worker := mount.worker) is not None:
                    worker.stop()
        for mount in self._snapshot():
            with mount.lock:
                if mount.live:
                    if not keep:
                        self._unmount_anyhow(mount)
                    self._end(mount, keep=keep)
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
                with self._lock:
                    if self._closed:
                        raise Cancelled("this process is ending")
                    mount = self._mounts.setdefault(mine.id, mine)
                if mount is mine:
                    self._create(mine, artifact.content, checkpoint)
                    return mine.id
            with mount.lock:
                # Not live: it failed, or was unmounted, while we waited. Then the next turn makes it ours.
                if mount.live and device.gone(mount.device_fd):
                    self._end(mount, keep=False)
                if mount.live:
                    self._join(mount, grant, use, checkpoint)
                    return mount.id

    def release(self, mount_id: str, grant: str) -> int:
        """Takes back a grant; its credentials are forgotten. How many remain; the mount stays. Unknown names are no error."""
        mount = self._mounts.get(mount_id)
        if mount is None:
            return 0
        with mount.lock:
            if not mount.live:
                return 0
            before = mount.prefetch
            if mount.uses.pop(grant, None) is not None:
                self._supervisor.revoke(mount, grant)
                self._keeping.keep(mount)
                if mount.uses and mount.prefetch != before:
                    self._supervisor.set_prefetch(mount)
                    mount.tune()
            return len(mount.uses)

    def unmount(self, mount_id: str, *, lazy: bool = False, unused_only: bool = False) -> bool:
        """Unmounts, whoever has a grant, and ends the worker. A mount that is not there is no error.

        One that is kept for a later version of the program is kept no longer; it is for the caller to unmount that.

        With `unused_only` nothing happens while anybody has a grant; the result says whether the mount is gone. Raises Conflict
        when it is busy (never if `lazy`), or mounted over; then nothing has changed.
        """
        mount = self._mounts.get(mount_id)
        if mount is None:
            if mount_id in self._left:
                self._left.discard(mount_id)
                self._keeping.drop(mount_id)
            return True
        if not unused_only:
            mount.ending = True
            self._supervisor.hurry(mount)
        with mount.lock:
            try:
                if unused_only and mount.live and mount.uses:
                    return False
                if mount.live:
                    self._unmount(mount, lazy=lazy)
                    self._end(mount, keep=False)
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
        mount = self._mounts.get(mount_id)
        if mount is None or not mount.live:
            raise NotFound("no such mount", where=mount_id)
        return self._describe([mount])[0]

    def statuses(self) -> list[MountStatus]:
        """As `status`, of all mounts, in about the same time."""
        return self._describe([mount for mount in self._snapshot() if mount.live])

    def health(self, mount_id: str) -> Health:
        """The condition of a mount from memory, at once whatever its processes do. Raises NotFound."""
        mount = self._mounts.get(mount_id)
        if mount is None or not mount.live:
            raise NotFound("no such mount", where=mount_id)
        return health(mount, self._around)

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
        mount = self._mounts.get(mount_id)
        return mount is not None and mount.live

    def find(self, mountpoint: Path) -> str | None:
        """The id of the mount at a real path."""
        return next((mount.id for mount in self._snapshot() if mount.live and mount.mountpoint == mountpoint), None)

    # ---- inside; the mount's lock is held ----

    def _create(self, mount: Mount, content: bytes, checkpoint: Callable[[str], None]) -> None:
        supervisor = self._supervisor
        with ExitStack() as undo:
            undo.callback(self._forget, mount)
            mount.mountpoint = device.usable_mountpoint(mount.mountpoint)
            undo.callback(mount.close)
            mount.table_fd = wire.sealed_memfd("weightless-table", content)
            with supervisor.attach(mount) as session:
                undo.callback(supervisor.detach, mount)
                checkpoint("attached")
                self._mount(mount, undo)
                checkpoint("mounted")
                undo.callback(self._keeping.drop, mount.id)
                self._keeping.keep(mount)
                checkpoint("kept")
                undo.callback(supervisor.end_worker, mount, drain=False)
                supervisor.start_worker(mount, session.fileno(), self.settings.start_limit_s)
            checkpoint("started")
            self._keeping.keep(mount)  # now with the reply
            mount.tune()
            checkpoint("live")
            mount.live = True
            supervisor.vitals.watch(mount)
            undo.pop_all()
        if mount.worker is None or not mount.worker.alive:
            self._supervisor.repair_soon(mount)  # it died before the mount was live, when nobody looked
        _log.info("mount_made", mount=mount.id, mountpoint=str(mount.mountpoint), reference=mount.spec.reference)

    def _mount(self, mount: Mount, undo: ExitStack) -> None:
        if mount.by_fusermount:
            mount.device_fd = fusermount.mount(mount.mountpoint)
        else:
            mount.device_fd = device.open_device()
            device.mount(mount.device_fd, mount.mountpoint)
        undo.callback(self._unmount_anyhow, mount)
        entry = MountTable.read().at(mount.mountpoint)
        if entry is None or not entry.ours:
            raise MountFailed("somebody unmounted it at once, or mounted over it", where=str(mount.mountpoint))
        mount.device = entry.device
        mount.init = device.read_init(mount.device_fd)

    def _join(self, mount: Mount, grant: str, use: Use, checkpoint: Callable[[str], None]) -> None:
        before, previous = mount.prefetch, mount.uses.get(grant)
        mount.uses[grant] = use
        try:
            self._supervisor.grant(mount, grant)
            checkpoint("live")
        except BaseException:
            if previous is None:
                del mount.uses[grant]
                self._supervisor.revoke(mount, grant)
            else:
                mount.uses[grant] = previous
                with suppress(WeightlessError):
                    self._supervisor.grant(mount, grant)
            raise
        self._keeping.keep(mount)
        if mount.prefetch != before:
            self._supervisor.set_prefetch(mount)
            mount.tune()

    def _unmount(self, mount: Mount, *, lazy: bool) -> None:
        there = MountTable.read().at(mount.mountpoint)
        if there is None:
            return  # a user was quicker
        if there.device != mount.device:
            if any(entry.mountpoint == mount.mountpoint for entry in MountTable.read().of_device(mount.device)):
                raise Conflict(f"{there.file_system} is mounted over it", where=str(mount.mountpoint))
            return
        if mount.by_fusermount:
            fusermount.unmount(mount.mountpoint, lazy=lazy)
        else:
            device.unmount(mount.mountpoint, lazy=lazy)

    def _unmount_anyhow(self, mount: Mount) -> None:
        for lazy in (False, True):
            try:
                self._unmount(mount, lazy=lazy)
                return
            except WeightlessError as error:
                _log.warning("unmount_failed", mountpoint=str(mount.mountpoint), lazy=lazy, error=error)

    def _end(self, mount: Mount, *, keep: bool) -> None:
        """Ends what serves a mount, and forgets it. Whoever still has a file of it open gets ENOTCONN, unless it is kept."""
        mount.live = False
        self._supervisor.end_worker(mount, drain=keep)
        self._supervisor.detach(mount)
        if not keep:
            self._keeping.drop(mount.id)
        self._supervisor.vitals.forget(mount)
        mount.close()
        self._forget(mount)
        self._around.ledger.forget(mount.id)
        _log.info("mount_left" if keep else "mount_ended", mount=mount.id, mountpoint=str(mount.mountpoint))

    def _forget(self, mount: Mount) -> None:
        with self._lock:
            if self._mounts.get(mount.id) is mount:
                del self._mounts[mount.id]

    # ---- inside; no lock is held ----

    def _kernel_ended(self, mount: Mount) -> None:
        status = self._describe([mount])[0]
        with mount.lock:
            if not mount.live:
                return
            self._end(mount, keep=False)
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
                self._unmount_anyhow(mount)
        self._kernel_ended(mount)

    def _found_late(self, name: str, fds: list[int]) -> None:
        """A keeper came back with what a predecessor had left to it."""
        self._take_back(name, fds)
        mount = self._mounts.get(name)
        if mount is not None:
            self._supervisor.repair_soon(mount)

    def _take_back(self, name: str, fds: list[int]) -> None:
        """Before anybody else can know the mount."""
        try:
            mount = from_kept(fds)
        except ValueError as error:
            wire.close_all(fds)
            newer = isinstance(error, Newer)
            lost = LostMount(mount_id=name, mountpoint="", reference="", grants=(), reason=str(error)[:300], kept=newer)
            self._lose(lost)
            return
        _end_left_worker(mount)
        if device.gone(mount.device_fd):
            mount.close()
            self._lose(
                LostMount(
                    mount_id=mount.id,
                    mountpoint=os.fspath(mount.mountpoint),
                    reference=mount.spec.reference,
                    grants=tuple(mount.uses),
                    reason="it was unmounted meanwhile",
                )
            )
            return
        mount.live = True
        with self._lock:
            ours = self._mounts.setdefault(mount.id, mount) is mount
        if not ours:
            mount.close()  # it was made anew meanwhile; the keeper is given the new one
            return
        self._supervisor.vitals.watch(mount)

    def _lose(self, lost: LostMount) -> None:
        _log.warning("mount_lost", mount=lost.mount_id, mountpoint=lost.mountpoint, reason=lost.reason, kept=lost.kept)
        self._lost.append(lost)
        if lost.kept:
            self._left.add(lost.mount_id)
        else:
            self._keeping.drop(lost.mount_id)

    def _describe(self, mounts: list[Mount]) -> list[MountStatus]:
        return describe(mounts, self._around)

    def _snapshot(self) -> list[Mount]:
        with self._lock:
            return list(self._mounts.values())


def _end_left_worker(mount: Mount) -> None:
    """A worker ends with its holder, by itself: but not one that is stopped, or hangs, and it has taken requests."""
    pidfd, mount.left_worker = mount.left_worker, -1
    if pidfd >= 0:
        if process.kill_left(pidfd):
            _log.warning("left_worker_killed", mount=mount.id, mountpoint=str(mount.mountpoint))
        os.close(pidfd)
