"""What a predecessor of this holder left to the keeper: taken back, or lost, or left for a later version of the program.

Called at the start, before anybody else can know the mounts, and later when a keeper that was away comes back.
"""

from __future__ import annotations

import os

import structlog

from fuse import wire
from fuse.mounting import device, process
from fuse.mounting.keeping import Keeping
from fuse.mounting.mount import Mount, Newer, from_kept
from fuse.mounting.roll import Roll
from fuse.mounting.values import LostMount
from fuse.mounting.vitals import Vitals

_log = structlog.get_logger()


class Inheritance:
    def __init__(self, roll: Roll, keeping: Keeping, vitals: Vitals) -> None:
        self._roll = roll
        self._keeping = keeping
        self._vitals = vitals
        self.lost: list[LostMount] = []
        """What could not be taken back."""
        self._newer: set[str] = set()
        """Names that the keeper holds for a later version of the program."""

    def take(self, name: str, fds: list[int]) -> None:
        """Takes over the descriptors, and the mount if it lives; it has no worker then."""
        try:
            mount = from_kept(fds)
        except ValueError as error:
            wire.close_all(fds)
            newer = isinstance(error, Newer)
            self._lose(
                LostMount(mount_id=name, mountpoint="", reference="", grants=(), reason=str(error)[:300], kept=newer)
            )
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
        if not self._roll.enter_taken_back(mount):
            mount.close()  # it was made anew meanwhile; the keeper is given the new one
            return
        self._vitals.watch(mount)

    def renounce(self, name: str) -> None:
        """What is kept for a later version is kept no longer."""
        if name in self._newer:
            self._newer.discard(name)
            self._keeping.drop(name)

    def _lose(self, lost: LostMount) -> None:
        _log.warning("mount_lost", mount=lost.mount_id, mountpoint=lost.mountpoint, reason=lost.reason, kept=lost.kept)
        self.lost.append(lost)
        if lost.kept:
            self._newer.add(lost.mount_id)
        else:
            self._keeping.drop(lost.mount_id)


def _end_left_worker(mount: Mount) -> None:
    """A worker ends with its holder, by itself: but not one that is stopped, or hangs, and it has taken requests."""
    pidfd, mount.left_worker = mount.left_worker, -1
    if pidfd >= 0:
        if process.kill_left(pidfd):
            _log.warning("left_worker_killed", mount=mount.id, mountpoint=str(mount.mountpoint))
        os.close(pidfd)
