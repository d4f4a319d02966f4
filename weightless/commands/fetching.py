"""Filling the cache without a mount: an attached session of the fetcher, as a worker has, that asks for everything.

Shared by the commands that need all of an artifact (`pull`, `index`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from fuse import wire
from fuse.artifact.reference import Reference
from fuse.cache.blob import CachedBlob
from fuse.errors import CacheFailed, NoSpace, Unavailable, WeightlessError, from_fault
from fuse.fetch import protocol
from fuse.filesystem.table import Table, decode
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.fetcher_connection import Connection
from fuse.prefetch.order import ranges
from fuse.registry.access import Access
from weightless import units
from weightless.commands.progress import Meter

_POLL_S: Final = 0.2
_RESTARTS: Final = 5
_GRANT: Final = "pull"
_OPEN_S: Final = 30.0

T = TypeVar("T")


def with_everything(
    client: FetcherClient,
    reference: str,
    content: bytes,
    access: Access,
    cache_dir: Path,
    drawn: Meter,
    use: Callable[[Session, int], T],
    *,
    copy_out: bool = False,
) -> T:
    """Calls `use` with a session in which all blobs of the table `content` are cached and verified, and what was fetched.

    `reference` is pinned. With `copy_out` it is made ready for native mounts afterwards, by a fetcher that somebody else keeps. A
    fetcher that dies is replaced, and `use` called again. Raises what cannot heal.
    """
    table = decode(content)
    for _ in range(_RESTARTS):
        connection = client.connection()
        try:
            return _once(connection, reference, content, table, access, cache_dir, drawn, use, copy_out)
        except Unavailable:
            if not connection.gone:
                raise
            drawn.say("the fetcher died; a new one goes on where it stopped")
    return _once(client.connection(), reference, content, table, access, cache_dir, drawn, use, copy_out)


def _once(
    connection: Connection,
    reference: str,
    content: bytes,
    table: Table,
    access: Access,
    cache_dir: Path,
    drawn: Meter,
    use: Callable[[Session, int], T],
    copy_out: bool,
) -> T:
    with _session(connection, reference, content, copy_out) as session:
        connection.grant(session.mount, _GRANT, reference, access)
        return use(session, _fetch(session, table, drawn, cache_dir))


class Session:
    """An attached session: what a worker has, without a worker."""

    def __init__(self, connection: Connection, mount: str, channel: wire.Channel[protocol.ToWorker]) -> None:
        self.connection = connection
        self.mount = mount
        self.channel = channel
        self.ended = threading.Event()
        self._opened: dict[int, list[int]] = {}
        self._news = threading.Condition()
        self.failure: protocol.Failed | protocol.Quarantined | None = None

    def listen(self) -> None:
        """A thread's work: takes what the fetcher says, so that it never has to wait for us, and keeps the first failure."""
        try:
            while (received := self.channel.receive()) is not None:
                message, descriptors = received
                if isinstance(message, protocol.Opened) and len(descriptors) == 2:
                    with self._news:
                        wire.close_all(self._opened.pop(message.blob, []))
                        self._opened[message.blob] = descriptors
                        self._news.notify_all()
                    continue
                wire.close_all(descriptors)
                if isinstance(message, protocol.Failed | protocol.Quarantined) and self.failure is None:
                    self.failure = message
        except OSError:
            pass  # As the end of file: the fetcher is gone.
        finally:
            self.ended.set()

    def open(self, blob: int) -> CachedBlob:
        """The cached blob with this number in the table; the caller closes it. Raises Unavailable."""
        try:
            self.channel.send(protocol.Open(blob=blob))
        except OSError as error:
            raise Unavailable("the fetcher is gone", where=self.mount) from error
        with self._news:
            if not self._news.wait_for(lambda: blob in self._opened, _OPEN_S):
                raise Unavailable("the fetcher does not open a blob of the cache", where=self.mount)
            data, index = self._opened.pop(blob)
        return CachedBlob(data, index)

    def close(self) -> None:
        with self._news:
            for descriptors in self._opened.values():
                wire.close_all(descriptors)
            self._opened.clear()


@contextlib.contextmanager
def _session(connection: Connection, reference: str, content: bytes, copy_out: bool) -> Iterator[Session]:
    ours, theirs = wire.pair()
    mount = f"pull-{os.getpid()}-{os.urandom(4).hex()}"
    with ours:
        _attach(connection, mount, Reference.parse(reference).host, theirs, content, copy_out)
        session = Session(connection, mount, wire.Channel(ours, protocol.ToWorker))
        listener = threading.Thread(target=session.listen, name="session", daemon=True)
        listener.start()
        try:
            yield session
        finally:
            session.channel.hang_up()
            listener.join()
            session.close()
            with contextlib.suppress(WeightlessError):
                connection.detach(mount)


def _attach(
    connection: Connection, mount: str, registry: str, theirs: socket.socket, content: bytes, copy_out: bool
) -> None:
    """The fetcher has its own copies of both descriptors afterwards."""
    with theirs:
        table = wire.sealed_memfd("table", content)
        try:
            connection.attach(mount, registry, theirs.fileno(), table, copy_out=copy_out)
        finally:
            os.close(table)


def _fetch(session: Session, table: Table, drawn: Meter, cache_dir: Path) -> int:
    """Asks for everything and waits for it; returns the bytes that came from registries. Raises what cannot heal."""
    connection, mount = session.connection, session.mount
    before = connection.progress(mount).bytes_fetched
    try:
        for blob, first, count in ranges(table):
            session.channel.send(protocol.Want(blob=blob, first=first, count=count, priority="background"))
    except OSError as error:
        raise Unavailable("the fetcher is gone") from error
    while True:
        progress = connection.progress(mount)
        fault = progress.failed_by or (session.failure.fault if session.failure else None)
        if fault is not None:
            raise from_fault(fault)
        if progress.stalled_by is not None and progress.stalled_by.kind == CacheFailed.kind:
            raise CacheFailed(progress.stalled_by.what, where=str(cache_dir), fix=progress.stalled_by.fix)
        if progress.stalled_by is not None and progress.stalled_by.kind == NoSpace.kind:
            # A mount reads on without the cache; a pull would wait for room that it takes up itself.
            raise NoSpace(
                f"the cache is full and everything in it is in use: {units.size(progress.bytes_cached)} of "
                f"{units.size(progress.bytes_total)} are there",
                where=str(cache_dir),
                fix=progress.stalled_by.fix,
            )
        drawn.show(progress)
        if progress.bytes_cached >= progress.bytes_total and progress.verified_blobs >= len(table.blobs):
            return progress.bytes_fetched - before
        if session.ended.wait(_POLL_S):
            raise Unavailable("the fetcher is gone", where=session.mount)
