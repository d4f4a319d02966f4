"""The fetcher as a holder or a command sees it: found or started, asked, and started anew when it dies.

One fetcher serves a cache directory, whoever started it; it holds the lock there for its life, and ends when nobody is connected
any more. Thread-safe. With `on_connected` set (a holder), a thread reconnects at once after a loss and calls it with the new
connection; without (a command), the next request reconnects.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from fuse import wire
from fuse.errors import NotFound, Unavailable, WeightlessError
from fuse.fetch import protocol
from fuse.filesystem.table import View
from fuse.mounting import process
from fuse.mounting.fetcher_connection import Connection
from fuse.mounting.fetcher_start import FetcherSettings, connect_or_start, log_path
from fuse.mounting.restarts import History
from fuse.registry.access import Access

_END_GRACE_S: Final = 0.5
_END_LIMIT_S: Final = 20.0

_log = structlog.get_logger()
_Result = TypeVar("_Result")


class FetcherClient:
    """Requests to the fetcher of a cache directory."""

    def __init__(self, settings: FetcherSettings, *, on_connected: Callable[[Connection], None] | None = None) -> None:
        self._not_before = 0.0
        self._settings = settings
        self._on_connected = on_connected
        self._connection: Connection | None = None
        self._started = False
        self.history = History()
        self._connecting = threading.Lock()
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._trouble: WeightlessError | None = None
        self._reconnecting: threading.Thread | None = None
        if on_connected is not None:
            self._reconnecting = threading.Thread(target=self._stay_connected, name="fetcher-again", daemon=True)
            self._reconnecting.start()

    @property
    def pid(self) -> int | None:
        """Of the fetcher, while connected."""
        connection = self._connection
        return connection.pid if connection is not None and not connection.gone else None

    @property
    def current(self) -> Connection | None:
        """The connection there is, dead or alive; never waits for one."""
        return self._connection

    @property
    def trouble(self) -> WeightlessError | None:
        """Why there is no fetcher, while trying to have one fails."""
        return self._trouble

    def connection(self) -> Connection:
        """A connection that was alive a moment ago. Starts the fetcher if there is none. Raises a WeightlessError."""
        with self._connecting:
            if self._closing.is_set():
                raise Unavailable("closed already", where=str(self._settings.cache_dir))
            if self._connection is None or self._connection.gone:
                if self._closing.wait(max(0.0, self._not_before - time.monotonic())):
                    raise Unavailable("closed already", where=str(self._settings.cache_dir))
                try:
                    self._connection, started = connect_or_start(self._settings, on_gone=self._gone)
                    self._started = self._started or started
                except WeightlessError as error:
                    self._trouble = error
                    self._ended(f"cannot be started: {error.what}", "")
                    raise
                self._trouble = None
                self.history.started(time.monotonic())
            return self._connection

    def resolve(
        self,
        reference: str,
        access: Access,
        view: View,
        cancel: threading.Event | None = None,
        *,
        look_again: bool = False,
    ) -> tuple[protocol.Resolved, bytes]:
        """Proves that `access` may pull `reference`, and computes its table.

        `look_again`: asks for a chunk index and a profile even if there was none a moment ago.
        """
        return self._twice(
            lambda connection: connection.resolve(reference, access, view, cancel, look_again=look_again)
        )

    def find_profile(self, reference: str) -> tuple[str, bytes]:
        """Whose profile of the artifact (pinned) is known, and the profile, encoded. Raises NotFound when there is none."""
        return self._twice(lambda connection: connection.find_profile(reference))

    def cache_list(self) -> list[protocol.CachedBlob]:
        return self._blobs(lambda number: protocol.CacheList(id=number))

    def cache_remove(self, digests: tuple[str, ...] = ()) -> list[protocol.CachedBlob]:
        """Removes blobs (all that are not in use, without digests) and returns what was removed."""
        return self._blobs(lambda number: protocol.CacheRemove(id=number, digests=digests))

    def cache_pin(self, name: str, registry: str, content: bytes) -> None:
        """Keeps the blobs of an encoded table from eviction and removal, until `cache_unpin(name)`."""
        table = wire.sealed_memfd("table", content)
        try:
            self._twice(
                lambda connection: connection.ask(
                    lambda number: protocol.CachePin(id=number, name=name, registry=registry), (table,)
                )
            )
        finally:
            os.close(table)

    def cache_pin_whole(self, mount_id: str, registry: str, content: bytes) -> protocol.Whole:
        """Keeps the blobs of a native mount until `cache_unpin`, at most while the machine runs.

        Raises NotFound when not all of them are complete and verified, or when the fetcher's version knows no such mounts.
        """
        table = wire.sealed_memfd("table", content)
        try:
            answers = self._twice(
                lambda connection: connection.ask(
                    lambda number: protocol.CachePin(id=number, name=mount_id, registry=registry, whole=True), (table,)
                )
            )
        finally:
            os.close(table)
        for answer in answers:
            if isinstance(answer, protocol.Whole):
                return answer
        self.cache_unpin((mount_id,))
        raise NotFound("the fetcher is of an older version", where=mount_id)

    def cache_pin_digests(self, digests: tuple[str, ...]) -> None:
        """As `cache_pin`, for blobs that are in the cache; each is pinned by the name of its digest."""
        self._twice(lambda connection: connection.ask(lambda number: protocol.CachePin(id=number, digests=digests)))

    def cache_unpin(self, names: tuple[str, ...]) -> None:
        """Raises NotFound for what is not pinned."""
        self._twice(lambda connection: connection.ask(lambda number: protocol.CacheUnpin(id=number, names=names)))

    def cache_verify(
        self, digests: tuple[str, ...] = (), cancel: threading.Event | None = None
    ) -> list[protocol.CachedBlob]:
        return self._blobs(lambda number: protocol.CacheVerify(id=number, digests=digests), cancel)

    def close(self) -> None:
        """Closes the connection. If nobody else uses the fetcher, returns when it has ended.

        A command that found a fetcher leaves it to whoever started it, and does not wait.
        """
        self._closing.set()
        self._lost.set()
        if self._reconnecting is not None:
            self._reconnecting.join()
        with self._connecting:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        if self._on_connected is None and not self._started:
            return
        ended = process.wait_for_pid(connection.pid, _END_GRACE_S)
        if not ended:
            # If it answers, somebody else is connected, or it had not noticed yet that nobody is: then it notices now.
            ended = process.wait_for_pid(connection.pid, _END_GRACE_S if _answers(connection.path) else _END_LIMIT_S)
        if ended:
            log_path(self._settings).unlink(missing_ok=True)

    def _blobs(
        self, make: Callable[[int], protocol.Request], cancel: threading.Event | None = None
    ) -> list[protocol.CachedBlob]:
        answers = self._twice(lambda connection: connection.ask(make, limit_s=None, cancel=cancel))
        return [blob for answer in answers if isinstance(answer, protocol.CacheBlobs) for blob in answer.blobs]

    def _twice(self, ask: Callable[[Connection], _Result]) -> _Result:
        """For requests that change nothing by being repeated: the fetcher may die once under them."""
        connection = self.connection()
        try:
            return ask(connection)
        except Unavailable:
            if not connection.gone:
                raise
            return ask(self.connection())

    def _gone(self, connection: Connection) -> None:
        if not self._closing.is_set():
            fate, last_words = connection.fate()
            self._ended(fate, last_words)
            _log.warning(
                "fetcher_gone",
                pid=connection.pid,
                reason=fate,
                last_words=last_words,
                restarts=self.history.told.count,
                next_start_in_s=max(0.0, self._not_before - time.monotonic()),
            )
            self._lost.set()

    def _ended(self, reason: str, last_words: str) -> None:
        now = time.monotonic()
        self._not_before = now + self.history.ended(now, time.time(), reason, last_words)

    def _stay_connected(self) -> None:
        told: Connection | None = None
        while True:
            self._lost.wait()
            if self._closing.is_set():
                return
            self._lost.clear()
            try:
                connection = self.connection()
            except Exception as error:  # noqa: BLE001  (a thread that must not end while the mounts live)
                _log.warning("fetcher_not_started", error=error, tries=self.history.told.count)
                self._lost.set()
                continue
            if connection is not told and self._on_connected is not None:
                told = connection
                try:
                    self._on_connected(connection)
                except Exception:  # noqa: BLE001  (as above)
                    _log.exception("fetcher_not_told")


def _answers(path: Path) -> bool:
    try:
        Connection(path, on_gone=lambda _: None).close()
    except (OSError, WeightlessError):
        return False
    return True
