"""How one FUSE mount comes to be, gets and loses users, and ends: the steps in their order, each taken back if a later one fails.

Decides nothing about who may have it, and repairs nothing (`fuse.mounting.supervisor`). Every method is called with the mount's
lock held, from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

import structlog

from fuse import wire
from fuse.errors import Conflict, MountFailed, WeightlessError
from fuse.mounting import device, fusermount
from fuse.mounting.keeping import Keeping
from fuse.mounting.mount import Mount, Use
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.roll import Roll
from fuse.mounting.supervisor import Supervisor

CHECKPOINTS: Final = ("attached", "mounted", "kept", "started", "live")
"""What `create` has done each time that it calls `checkpoint`; `join` calls it with the last one only."""

_log = structlog.get_logger()


class Maker:
    def __init__(self, roll: Roll, supervisor: Supervisor, keeping: Keeping, start_limit_s: float) -> None:
        self._roll = roll
        self._supervisor = supervisor
        self._keeping = keeping
        self._start_limit_s = start_limit_s

    def create(self, mount: Mount, content: bytes, checkpoint: Callable[[str], None]) -> None:
        """Makes the mount, which is on the roll, live; `content` is its encoded table. On failure it is off the roll again."""
        supervisor = self._supervisor
        with ExitStack() as undo:
            undo.callback(self._roll.strike, mount)
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
                supervisor.start_worker(mount, session.fileno(), self._start_limit_s)
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
            mount.device_fd = fusermount.mount(mount.mountpoint, mount.spec.label)
        else:
            mount.device_fd = device.open_device()
            device.mount(mount.device_fd, mount.mountpoint, mount.spec.label)
        undo.callback(self.unmount_anyhow, mount)
        entry = MountTable.read().at(mount.mountpoint)
        if entry is None or not entry.ours:
            raise MountFailed("somebody unmounted it at once, or mounted over it", where=str(mount.mountpoint))
        mount.device = entry.device
        mount.init = device.read_init(mount.device_fd)

    def join(self, mount: Mount, grant: str, use: Use, checkpoint: Callable[[str], None]) -> None:
        """One more user of a live mount, or the same one with other credentials. On failure all is as before."""
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
        self._want_as_users_do(mount, before)

    def leave(self, mount: Mount, grant: str) -> None:
        """The user goes, and its credentials are forgotten. The mount stays, also without any."""
        before = mount.prefetch
        if mount.uses.pop(grant, None) is not None:
            self._supervisor.revoke(mount, grant)
            self._keeping.keep(mount)
            if mount.uses:
                self._want_as_users_do(mount, before)

    def _want_as_users_do(self, mount: Mount, before: str) -> None:
        if mount.prefetch != before:
            self._supervisor.set_prefetch(mount)
            mount.tune()

    def unmount(self, mount: Mount, *, lazy: bool) -> None:
        """Takes it out of the tree. Raises Conflict when it is busy (never if `lazy`), or mounted over."""
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

    def unmount_anyhow(self, mount: Mount) -> None:
        """Lazily if it is busy."""
        for lazy in (False, True):
            try:
                self.unmount(mount, lazy=lazy)
                return
            except WeightlessError as error:
                _log.warning("unmount_failed", mountpoint=str(mount.mountpoint), lazy=lazy, error=error)

    def end(self, mount: Mount, *, keep: bool) -> None:
        """Ends what serves a mount, and forgets it. Whoever still has a file of it open gets ENOTCONN, unless it is kept."""
        mount.live = False
        self._supervisor.end_worker(mount, drain=keep)
        self._supervisor.detach(mount)
        if not keep:
            self._keeping.drop(mount.id)
        self._supervisor.vitals.forget(mount)
        mount.close()
        self._roll.strike(mount)
        self._supervisor.ledger.forget(mount.id)
        _log.info("mount_left" if keep else "mount_ended", mount=mount.id, mountpoint=str(mount.mountpoint))
