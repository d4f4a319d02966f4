"""A holder's use of its keeper: what is kept, and a new keeper filled when the old one dies.

Without a keeper (`enabled` false) everything here does nothing. A keeper that cannot be had is never a reason to refuse or to
end a mount.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from fuse.errors import Unavailable
from fuse.mounting.keeper_client import KeeperClient
from fuse.mounting.mount import Mount
from fuse.mounting.restarts import History
from fuse.mounting.watch import HUNG_UP, Watch

_PAUSE_S: Final = 1.0
_RENEWAL_LIMIT_S: Final = 5.0

_log = structlog.get_logger()


class Keeping:
    """The connection to the keeper, renewed as needed. `mounts` tells what a new keeper has to be given."""

    def __init__(self, path: Path, watcher: Watch, *, enabled: bool, mounts: Callable[[], list[Mount]]) -> None:
        self._path = path
        self._watch = watcher
        self._enabled = enabled
        self._mounts = mounts
        self._client: KeeperClient | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._renewal: threading.Thread | None = None
        self.history = History()
        self.away_since = 0.0
        """Unix time since when a keeper is wanted and not there; 0 when it is."""

    @property
    def pid(self) -> int | None:
        client = self._client
        return client.pid if client is not None else None

    def open(self) -> Iterator[tuple[str, list[int]]]:
        """Connects, and yields what the keeper holds: names and descriptors, which the caller owns."""
        if not self._enabled:
            return
        client = self._client = KeeperClient.open(self._path)
        for name in client.names():
            yield name, client.take(name)
        self._watch.add(client.fileno(), HUNG_UP, self._hung_up)

    def keep(self, mount: Mount) -> None:
        """Gives the mount as it is now to the keeper. Its lock is held by the caller."""
        client = self._client
        if client is None or mount.device_fd < 0:
            return
        state = mount.keepsake()
        try:
            client.keep(mount.id, [mount.device_fd, state, mount.table_fd])
        except Unavailable as error:
            _log.warning("mount_not_kept", mount=mount.id, error=error)  # if it died, the renewal keeps it
        finally:
            os.close(state)

    def drop(self, mount_id: str) -> None:
        client = self._client
        if client is None:
            return
        try:
            client.drop(mount_id)
        except Unavailable as error:
            _log.warning("mount_not_dropped", mount=mount_id, error=error)

    def wait_renewed(self) -> bool:
        """Whether there is a keeper, after waiting for one that is being started."""
        renewal = self._renewal
        if renewal is not None:
            renewal.join(_RENEWAL_LIMIT_S)
        return self._client is not None

    def close(self, *, wait: bool) -> None:
        """Ends the connection; with `wait` returns when the keeper, which then holds nothing, has ended."""
        self._closing.set()
        if self._renewal is not None:
            self._renewal.join()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            self._watch.remove(client.fileno())
            client.close(wait=wait)

    def _hung_up(self) -> None:
        """On the watch thread."""
        with self._lock:
            client, self._client = self._client, None
        if client is None:
            return
        self._watch.remove(client.fileno())
        client.close()
        if not self._closing.is_set():
            _log.warning("keeper_gone", pid=client.pid)
            self.away_since = time.time()
            self.history.ended(time.monotonic(), self.away_since, "hung up")
            self._renewal = threading.Thread(target=self._renew, name="keeper-again", daemon=True)
            self._renewal.start()

    def _renew(self) -> None:
        while True:
            try:
                client = KeeperClient.open(self._path)
                break
            except Unavailable as error:
                _log.warning("keeper_not_started", error=error)
            if self._closing.wait(_PAUSE_S):
                return
        with self._lock:
            self._client = client
            self.away_since = 0.0
        self._watch.add(client.fileno(), HUNG_UP, self._hung_up)
        for mount in self._mounts():
            with mount.lock:
                if mount.live:
                    self.keep(mount)
