"""`weightless pull`: the whole of a model into the cache, and every digest verified.

The command is an administrator of the fetcher with a session of its own, as a worker would have, and asks in it for everything in
the background.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fuse import wire
from fuse.artifact.reference import Reference
from fuse.errors import CacheFailed, NoSpace, Unavailable, WeightlessError, from_fault
from fuse.fetch import protocol
from fuse.filesystem.table import Table, decode
from fuse.mounting.fetcher_connection import Connection
from fuse.prefetch.order import ranges
from weightless import console, units, wiring
from weightless.commands.progress import Meter, meter
from weightless.options import Settings

_POLL_S: Final = 0.2
_RESTARTS: Final = 5
_GRANT: Final = "pull"


def run(
    settings: Settings, reference: str, *, exclude: tuple[str, ...], exclude_weights: bool, pin: bool = False
) -> None:
    """With `pin` it is kept from eviction, from before its first byte comes.

    Returns when all is cached and verified. KeyboardInterrupt leaves in the cache what is there."""
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    access = wiring.access_reader(settings).access(reference)
    begun = time.monotonic()
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client:
        resolved, content = client.resolve(reference, access, wiring.view(exclude, exclude_weights=exclude_weights))
        table = decode(content)
        console.note(f"{resolved.reference}: {resolved.files} files, {units.size(resolved.bytes_total)}")
        if pin:
            named = Reference.parse(reference)
            client.cache_pin(str(named), named.host, content)
        fetched = 0
        with meter(resolved.bytes_total) as drawn:
            for last_try in (False,) * _RESTARTS + (True,):
                connection = client.connection()
                try:
                    with _session(connection, resolved.reference, content) as session:
                        connection.grant(session.mount, _GRANT, resolved.reference, access)
                        fetched = _fetch(session, table, drawn, settings.cache_dir)
                    break
                except Unavailable:
                    if last_try or not connection.gone:
                        raise
                    drawn.say("the fetcher died; a new one goes on where it stopped")
    seconds = time.monotonic() - begun
    came = f"{units.size(fetched)} fetched in {units.duration(seconds)}" if fetched else "all was there already"
    if pin:
        came += ", pinned"
    console.say(f"pulled and verified {resolved.reference}: {came}")


class _Session:
    """An attached session: what a worker has, without a worker."""

    def __init__(self, connection: Connection, mount: str, channel: wire.Channel[protocol.ToWorker]) -> None:
        self.connection = connection
        self.mount = mount
        self.channel = channel
        self.ended = threading.Event()
        self.failure: protocol.Failed | protocol.Quarantined | None = None

    def listen(self) -> None:
        """A thread's work: takes what the fetcher says, so that it never has to wait for us, and keeps the first failure."""
        try:
            while (received := self.channel.receive()) is not None:
                message, descriptors = received
                wire.close_all(descriptors)
                if isinstance(message, protocol.Failed | protocol.Quarantined) and self.failure is None:
                    self.failure = message
        except OSError:
            pass  # As the end of file: the fetcher is gone.
        finally:
            self.ended.set()


@contextlib.contextmanager
def _session(connection: Connection, reference: str, content: bytes) -> Iterator[_Session]:
    ours, theirs = wire.pair()
    mount = f"pull-{os.getpid()}-{os.urandom(4).hex()}"
    with ours:
        _attach(connection, mount, Reference.parse(reference).host, theirs, content)
        session = _Session(connection, mount, wire.Channel(ours, protocol.ToWorker))
        listener = threading.Thread(target=session.listen, name="session", daemon=True)
        listener.start()
        try:
            yield session
        finally:
            session.channel.hang_up()
            listener.join()
            with contextlib.suppress(WeightlessError):
                connection.detach(mount)


def _attach(connection: Connection, mount: str, registry: str, theirs: socket.socket, content: bytes) -> None:
    """The fetcher has its own copies of both descriptors afterwards."""
    with theirs:
        table = wire.sealed_memfd("table", content)
        try:
            connection.attach(mount, registry, theirs.fileno(), table)
        finally:
            os.close(table)


def _fetch(session: _Session, table: Table, drawn: Meter, cache_dir: Path) -> int:
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
