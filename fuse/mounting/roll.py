"""The roll of a holder's FUSE mounts, by their ids: who is there, and that each is there once.

Knows nothing of how a mount is made or ended. Thread-safe; its lock is held for moments, and taken inside of a mount's own,
never around it. A mount is entered before it is made, and is `live` only when it is: who looks one up asks for that.
"""

from __future__ import annotations

import threading
from pathlib import Path

from fuse.errors import Cancelled, NotFound
from fuse.mounting.mount import Mount


class Roll:
    def __init__(self) -> None:
        self._mounts: dict[str, Mount] = {}
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> bool:
        """Nobody enters any more. False when that was so already."""
        with self._lock:
            was, self._closed = self._closed, True
            return not was

    def enter(self, mount: Mount) -> Mount:
        """The mount of this id: another one if it was there first. Raises Cancelled after `close`."""
        with self._lock:
            if self._closed:
                raise Cancelled("this process is ending")
            return self._mounts.setdefault(mount.id, mount)

    def enter_taken_back(self, mount: Mount) -> bool:
        """As `enter`, at any time: whether this mount is the one of its id."""
        with self._lock:
            return self._mounts.setdefault(mount.id, mount) is mount

    def strike(self, mount: Mount) -> None:
        with self._lock:
            if self._mounts.get(mount.id) is mount:
                del self._mounts[mount.id]

    def get(self, mount_id: str) -> Mount | None:
        """Also one that is being made."""
        return self._mounts.get(mount_id)

    def __getitem__(self, mount_id: str) -> Mount:
        return self._mounts[mount_id]

    def live(self, mount_id: str) -> Mount:
        """Raises NotFound when there is none, or not yet."""
        mount = self._mounts.get(mount_id)
        if mount is None or not mount.live:
            raise NotFound("no such mount", where=mount_id)
        return mount

    def __contains__(self, mount_id: str) -> bool:
        mount = self._mounts.get(mount_id)
        return mount is not None and mount.live

    def __bool__(self) -> bool:
        return bool(self._mounts)

    def all(self) -> list[Mount]:
        with self._lock:
            return list(self._mounts.values())

    def at(self, mountpoint: Path) -> str | None:
        """The id of the mount at a real path."""
        return next((mount.id for mount in self.all() if mount.live and mount.mountpoint == mountpoint), None)
