"""A holder's use of its keeper: what is kept, and a keeper that was lost found or started again, and filled.

The keeper is the holder's own, which it starts, or one that runs by itself (`external`), which it only looks for. Without one
(`KeeperChoice` "none") everything here does nothing. A keeper that cannot be had is never a reason to refuse or to end a mount.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import structlog

from fuse import wire
from fuse.errors import Unavailable
from fuse.mounting.absence import Absence
from fuse.mounting.keeper_client import KeeperClient
from fuse.mounting.mount import Mount
from fuse.mounting.restarts import History
from fuse.mounting.watch import HUNG_UP, Watch

KeeperChoice = Literal["own", "external", "none"]
EXTERNAL_LIMIT_S: Final = 30.0
"""How long a start waits for a keeper that runs by itself, where mounts are left that it may hold; and how long it may be away
before that is a fault."""
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_RENEWAL_LIMIT_S: Final = 5.0

_log = structlog.get_logger()


class Keeping:
    """The connection to the keeper, renewed as needed. `mounts` tells what a new keeper has to be given."""

    def __init__(
        self,
        path: Path,
        watcher: Watch,
        *,
        choice: KeeperChoice,
        mounts: Callable[[], list[Mount]],
        found: Callable[[str, list[int]], None],
        successor: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        """`found` is called for what a keeper holds that comes back later than `open`: its descriptors are the caller's then.

        `successor` makes the descriptors of `KeeperClient.revive`, which are closed here.
        """
        self._path = path
        self._watch = watcher
        self._choice = choice
        self._mounts = mounts
        self._found = found
        self._successor = successor
        self._client: KeeperClient | None = None
        self._undropped: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._wanted = threading.Event()
        """A keeper is to be looked for, after a pause."""
        self._pause_s = 0.0
        self._there = threading.Event()
        """As far as one is wanted: none is being looked for."""
        self._there.set()
        # There from the start: a keeper may be lost when there is no room for one more thread.
        self._renewing = threading.Thread(target=self._renew_always, name="keeper-again", daemon=True)
        self.history = History()
        self.away_since = 0.0
        """Unix time since when a keeper is wanted and not there; 0 when it is."""
        self._absence: Absence | None = None

    @property
    def pid(self) -> int | None:
        client = self._client
        return client.pid if client is not None else None

    def open(self, *, patient: bool) -> Iterator[tuple[str, list[int]]]:
        """Connects, and yields what the keeper holds: names and descriptors, which the caller owns.

        Raises Unavailable when a keeper of our own cannot be started. One that runs by itself is waited for if `patient`, and
        looked for later if it is not there.
        """
        if self._choice == "none":
            return
        self._renewing.start()
        client = self._first(patient=patient)
        if client is None:
            self._look_again()
            return
        self._client = client
        for name in client.names():
            yield name, client.take(name)
        self._arm(client)

    def keep(self, mount: Mount) -> None:
        """Gives the mount as it is now to the keeper. Its lock is held by the caller."""
        client = self._client
        if client is None or mount.device_fd < 0:
            return
        state, *more = mount.keepsakes()
        try:
            client.keep(mount.id, [mount.device_fd, state, mount.table_fd, *more])
        except Unavailable as error:
            _log.warning("mount_not_kept", mount=mount.id, error=error)  # if it died, the renewal keeps it
            if client.broken:
                self._lost(client, "did not answer")
        finally:
            wire.close_all([state, *more])

    def drop(self, mount_id: str) -> None:
        client = self._client
        if client is None:
            self._undropped.add(mount_id)
            return
        try:
            client.drop(mount_id)
        except Unavailable as error:
            self._undropped.add(mount_id)
            _log.warning("mount_not_dropped", mount=mount_id, error=error)
            if client.broken:
                self._lost(client, "did not answer")

    def wait_renewed(self) -> bool:
        """Whether there is a keeper, after waiting for one that is being started."""
        self._there.wait(_RENEWAL_LIMIT_S)
        return self._client is not None

    def close(self, *, wait: bool) -> None:
        """Ends the connection; with `wait` returns when a keeper of our own, which then holds nothing, has ended."""
        self._closing.set()
        self._wanted.set()
        if self._renewing.is_alive():
            self._renewing.join()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            self._watch.remove(client.fileno())
            client.close(wait=wait and self._choice == "own")

    def _first(self, *, patient: bool) -> KeeperClient | None:
        if self._choice == "own":
            # It may hold what nobody else has, so one that is only slow is waited for.
            return KeeperClient.open(self._path, EXTERNAL_LIMIT_S)
        deadline = time.monotonic() + (EXTERNAL_LIMIT_S if patient else 0.0)
        while True:
            try:
                client = KeeperClient.connect(self._path)
            except Unavailable as error:
                self._tell(error)
            else:
                self._tell_found(client)
                return client
            if time.monotonic() >= deadline or self._closing.wait(_PAUSE_S):
                return None

    def _arm(self, client: KeeperClient) -> None:
        self.history.started(time.monotonic())
        self.away_since = 0.0
        if self._successor is not None:
            fds = self._successor()
            try:
                client.revive(fds)
            except Unavailable as error:
                _log.warning("successor_not_kept", error=error)
            finally:
                for fd in fds:
                    os.close(fd)
        self._watch.add(client.fileno(), HUNG_UP, self._hung_up)

    def _hung_up(self) -> None:
        """On the watch thread."""
        client = self._client
        if client is not None:
            self._lost(client, "hung up")

    def _lost(self, client: KeeperClient, reason: str) -> None:
        with self._lock:
            if self._client is not client:
                return
            self._client = None
            self._there.clear()
        self._watch.remove(client.fileno())
        client.close()
        if not self._closing.is_set():
            pause_s = self.history.ended(time.monotonic(), time.time(), reason)
            _log.warning(
                "keeper_gone", pid=client.pid, reason=reason, restarts=self.history.told.count, next_try_in_s=pause_s
            )
            self._look_again(pause_s)

    def _look_again(self, pause_s: float = 0.0) -> None:
        self.away_since = time.time()
        self._pause_s = pause_s
        self._there.clear()
        self._wanted.set()

    def _renew_always(self) -> None:
        while True:
            self._wanted.wait()
            if self._closing.is_set():
                return
            self._wanted.clear()
            try:
                self._renew(self._pause_s)
            except Exception:  # noqa: BLE001  (a thread that must not end while the mounts live)
                _log.exception("keeper_not_renewed")
                self._look_again(_LONGEST_PAUSE_S)

    def _renew(self, pause_s: float) -> None:
        while not self._closing.wait(pause_s):
            try:
                opened = KeeperClient.open if self._choice == "own" else KeeperClient.connect
                client = opened(self._path)
                held = client.names()
                break
            except Unavailable as error:
                pause_s = min(_LONGEST_PAUSE_S, max(_PAUSE_S, pause_s * 2))
                self._tell(error)
        else:
            return
        self._tell_found(client)
        with self._lock:
            self._client = client
        self._fill(client, held)
        if self._client is client:
            self._arm(client)
        with self._lock:
            if self._client is client:
                self._there.set()

    def _tell(self, error: Unavailable) -> None:
        """That there is no keeper, as often and as loudly as it is news."""
        now = time.monotonic()
        if self._absence is None:
            # Our own is started by us: that it cannot be is a fault from the first moment.
            self._absence = Absence(now, EXTERNAL_LIMIT_S if self._choice == "external" else 0.0)
        news = self._absence.news(now)
        if news == "awaited":
            _log.info("keeper_awaited", path=str(self._path), fault_after_s=EXTERNAL_LIMIT_S)
        elif news == "missing":
            away_s = round(self._absence.length_s(now), 1)
            _log.error("keeper_not_there", path=str(self._path), error=error, away_s=away_s)

    def _tell_found(self, client: KeeperClient) -> None:
        absence, self._absence = self._absence, None
        if absence is not None:
            _log.info("keeper_found", pid=client.pid, away_s=round(absence.length_s(time.monotonic()), 1))

    def _fill(self, client: KeeperClient, held: list[str]) -> None:
        """Makes the keeper hold what lives and nothing else; what it holds of a predecessor's is handed to `found`."""
        ours = self._mounts()
        known = {mount.id for mount in ours}
        try:
            for name in held:
                if name in self._undropped and name not in known:
                    client.drop(name)
                elif name not in known:
                    self._found(name, client.take(name))
        except Unavailable as error:
            _log.warning("keeper_not_searched", error=error)
        self._undropped.clear()
        for mount in ours:
            with mount.lock:
                if mount.live:
                    self.keep(mount)
