"""What keeps a mount served: its worker, its session with the fetcher, and their replacement when one of them dies.

A mount's lock is held by the caller wherever a mount is passed in, but where it is repaired or attached again: that takes the
lock itself, on threads of its own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec
import structlog

from fuse import spec, threads, wire
from fuse.errors import MountFailed, Unavailable, WeightlessError
from fuse.fetch.protocol import Resolved
from fuse.filesystem.table import View
from fuse.mounting import device
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.fetcher_connection import Connection
from fuse.mounting.fetcher_start import WORKER_ID
from fuse.mounting.fusectl import Connections
from fuse.mounting.keeping import Keeping
from fuse.mounting.ledger import Ledger
from fuse.mounting.mount import Mount
from fuse.mounting.spares import Spares
from fuse.mounting.values import HolderSettings
from fuse.mounting.vitals import Vitals
from fuse.mounting.watch import Watch
from fuse.mounting.worker import Worker
from fuse.registry.access import Access

_FETCHER_TRIES: Final = 3
_STARTS_AT_A_TIME: Final = 4
_SERVED_STEP_S: Final = 0.02
_SESSION_PAUSE_S: Final = 1.0
"""Before a fetcher that lives is asked for another session: if it died, that is known by then; if not, it is not flooded."""

_log = structlog.get_logger()
_Result = TypeVar("_Result")


class Supervisor:
    """Serves the mounts of one holder. `gone` is called, without locks, for a mount that the kernel has ended."""

    def __init__(
        self,
        settings: HolderSettings,
        watcher: Watch,
        keeping: Keeping,
        *,
        mounts: Callable[[], list[Mount]],
        gone: Callable[[Mount], None],
        abort: Callable[[Mount], None],
    ) -> None:
        """`abort` is called as `gone` is, for a mount whose connection this has to end."""
        self.fetcher = FetcherClient(settings.fetcher(), on_connected=self._fetcher_is_back)
        self.spares = Spares(watcher, log_level=settings.log_level, wanted=settings.spare_worker)
        self.ledger = Ledger()
        self.connections = Connections()
        self.vitals = Vitals(
            watcher,
            self.connections,
            fetcher=lambda: self.fetcher.current,
            unserved=self.repair_soon,
            give_up=self._give_up,
            fetcher_wedged=lambda connection, reason: connection.evict(reason),
            look_s=settings.look_s,
        )
        self._settings = settings
        self._watch = watcher
        self._keeping = keeping
        self._mounts = mounts
        self._gone = gone
        self._abort = abort
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._repairs: set[threading.Thread] = set()
        # When memory ran out for all workers at once, starting all of their successors at once would end the same way.
        self._starts = threading.Semaphore(_STARTS_AT_A_TIME)
        root = os.geteuid() == 0
        self._uid = (WORKER_ID if settings.uid is None else settings.uid) if root else None
        self._gid = (WORKER_ID if settings.gid is None else settings.gid) if root else None

    # ---- the fetcher's side ----

    def resolve(
        self, reference: str, access: Access, view: View, cancel: threading.Event | None
    ) -> tuple[Resolved, bytes]:
        with self.vitals.expecting():
            return self.fetcher.resolve(reference, access, view, cancel)

    def attach(self, mount: Mount) -> socket.socket:
        """Attaches the mount with all its grants to a live fetcher; the other end of the session, which the caller owns."""
        return self._with_fetcher(lambda connection: self._attach_to(mount, connection))

    def grant(self, mount: Mount, name: str) -> None:
        """Tells the fetcher of one of the mount's uses."""

        def tell(connection: Connection) -> None:
            if mount.attached_to is connection:
                use = mount.uses[name]
                connection.grant(mount.id, name, use.reference, use.access)
            else:
                self._attach_again(mount, connection)  # which grants all

        self._with_fetcher(tell)

    def revoke(self, mount: Mount, name: str) -> None:
        connection = mount.attached_to
        if connection is None:
            return
        try:
            connection.revoke(mount.id, name)
        except WeightlessError as error:
            # A fetcher that is gone has forgotten it; the next one is not told of it.
            if not connection.gone:
                _log.warning("grant_not_revoked", mount=mount.id, grant=name, error=error)

    def detach(self, mount: Mount) -> None:
        connection, mount.attached_to = mount.attached_to, None
        if connection is not None:
            connection.drop_question(mount.id)
            with suppress(WeightlessError):  # then it is gone, or forgets the mount with the connection
                connection.detach(mount.id)

    # ---- the worker's side ----

    def start_worker(self, mount: Mount, session: int, limit_s: float) -> None:
        """Starts a worker; returns when it serves, and the mount has its reply. Raises a WeightlessError, with no worker left."""
        fds = (mount.device_fd, session, mount.table_fd)
        takeover = mount.reply
        served = msgspec.structs.replace(mount.spec, prefetch=mount.prefetch)
        with self._starts:
            worker = self.spares.take(
                lambda ended: self._worker_ended(mount, ended),
                lambda worker, session: self._session_lost(mount, worker, session),
            )
            mount.worker = worker
            try:
                worker.start(
                    spec.Start(
                        spec=served,
                        init=mount.init,
                        reply=takeover,
                        uid=self._uid,
                        gid=self._gid,
                        resend=mount.resends,
                    ),
                    fds,
                )
                reply = worker.wait_started(limit_s)
            except BaseException:
                worker.end(drain=False)
                mount.worker = None
                raise
        # The first worker's reply stays: it is what the kernel took.
        mount.reply = mount.reply or reply
        mount.history.started(time.monotonic())

    def end_worker(self, mount: Mount, *, drain: bool) -> None:
        worker, mount.worker = mount.worker, None
        if worker is not None:
            worker.end(drain=drain)

    def set_prefetch(self, mount: Mount) -> None:
        if mount.worker is not None:
            with suppress(MountFailed):  # its successor is told at its start
                mount.worker.set_prefetch(mount.prefetch)

    # ---- repair ----

    def repair_soon(self, mount: Mount) -> None:
        """Has the mount served again, on a thread of its own. Nothing if that is under way, or not needed.

        Where there is no room for a thread, whoever looks at the mount as requests wait (`Vitals`) asks again.
        """
        with self._lock:
            if mount.repairing or self._closing.is_set():
                return
            mount.repairing = True
            thread = threading.Thread(target=self._repair, args=(mount,), name=f"repair-{mount.id}", daemon=True)
            # With the lock: whoever joins it finds it started.
            if threads.begin(thread):
                self._repairs.add(thread)
            else:
                mount.repairing = False

    def wait_repaired(self, limit_s: float) -> bool:
        """Whether every mount is served, after waiting for repairs that are under way and have not failed yet."""
        deadline = time.monotonic() + limit_s
        while True:
            unserved = [mount for mount in self._mounts() if mount.live and not mount.ending and not _serving(mount)]
            if not unserved:
                return True
            if time.monotonic() >= deadline or self._closing.wait(_SERVED_STEP_S):
                _log.warning("mounts_not_served", mounts=len(unserved))
                return False

    def stop_repairs(self) -> None:
        """No repair runs, or begins, after this. Workers that are just being started are killed."""
        self._closing.set()
        for mount in self._mounts():
            mount.ending = True
            self.hurry(mount)
        with self._lock:
            threads = list(self._repairs)
        for thread in threads:
            thread.join()

    def hurry(self, mount: Mount) -> None:
        """Makes whoever starts a worker for a live mount give up, for the sake of someone who waits for the lock to end it."""
        worker = mount.worker
        if mount.live and worker is not None and worker.starting:
            worker.kill()

    def close(self) -> None:
        self.spares.close()
        self.vitals.close()
        self.connections.close()
        self.fetcher.close()

    def _give_up(self, mount: Mount, worker: Worker, reason: str) -> None:
        """On the thread of the vitals."""
        _log.error("worker_wedged", mount=mount.id, pid=worker.pid, mountpoint=str(mount.mountpoint), reason=reason)
        worker.give_up(reason)
        self._worker_ended(mount, worker)

    def _worker_ended(self, mount: Mount, worker: Worker) -> None:
        """On the watch thread."""
        if mount.worker is worker and mount.live:
            self.repair_soon(mount)

    def _repair(self, mount: Mount) -> None:
        ended_by_kernel = abort = False
        try:
            pause_s = 0.0
            while not self._closing.wait(pause_s):
                with mount.lock:
                    if not mount.live or mount.ending or _served(mount):
                        return
                    if device.gone(mount.device_fd):
                        ended_by_kernel = True
                        return
                    if mount.worker is not None:
                        pause_s = self._bury(mount, mount.worker)
                        if self._must_abort(mount):
                            abort = True
                            return
                        if pause_s:
                            continue
                    if self._replace_worker(mount):
                        return
                    pause_s = mount.history.ended(
                        time.monotonic(), time.time(), f"could not be started: {mount.trouble}"
                    )
        finally:
            with self._lock:
                mount.repairing = False
                self._repairs.discard(threading.current_thread())
            if abort:
                self._abort(mount)
            elif ended_by_kernel:
                self._gone(mount)
            elif mount.live and not mount.ending and not _served(mount):
                self.repair_soon(mount)  # it died again between our last look and now

    def _bury(self, mount: Mount, worker: Worker) -> float:
        """Sees a worker off that has ended; how long to wait before the next may start."""
        self.end_worker(mount, drain=False)
        pause_s = mount.history.ended(time.monotonic(), time.time(), worker.fate, worker.last_words)
        _log.warning(
            "worker_gone",
            mount=mount.id,
            pid=worker.pid,
            mountpoint=str(mount.mountpoint),
            reason=worker.fate,
            last_words=worker.last_words,
            restarts=mount.history.told.count,
            next_start_in_s=pause_s,
        )
        mount.note(MountFailed(f"its worker {worker.fate}"))
        return pause_s

    def _must_abort(self, mount: Mount) -> bool:
        """Whether the dead worker took requests with it that nobody will ever answer, and they shall fail rather than wait."""
        if mount.resends or self._settings.without_resend == "wait":
            return False
        return self.connections.waiting(mount.minor) != 0

    def _replace_worker(self, mount: Mount) -> bool:
        first_reply = not mount.reply
        try:
            with self.attach(mount) as session:
                self.start_worker(mount, session.fileno(), self._settings.start_limit_s * 2)
        except (WeightlessError, OSError) as error:
            mount.note(error if isinstance(error, WeightlessError) else MountFailed(str(error)))
            _log.warning("worker_not_replaced", mount=mount.id, error=error)
            return False
        if first_reply and mount.resends:
            # The dead worker may have replied and taken requests without our having heard of it: then this one was not
            # told that it takes over, and nobody has asked for those requests yet.
            device.resend(mount.device_fd)
        self._keeping.keep(mount)  # with the new worker, and maybe with its reply
        mount.note(None)
        _log.info("worker_replaced", mount=mount.id, pid=mount.worker.pid if mount.worker else None)
        return True

    # ---- the fetcher died ----

    def _fetcher_is_back(self, connection: Connection) -> None:
        """On the fetcher client's thread, with a new connection."""
        for mount in self._mounts():
            with mount.lock:
                if not mount.live or mount.attached_to is connection or connection.gone:
                    continue
                try:
                    self._attach_again(mount, connection)
                except (WeightlessError, OSError) as error:
                    mount.note(error if isinstance(error, WeightlessError) else Unavailable(str(error)))
                    _log.warning("mount_not_attached", mount=mount.id, error=error)
                    if mount.worker is not None:
                        self._attach_soon(mount, connection, mount.worker, mount.worker.sessions)
                else:
                    _log.info("mount_attached_again", mount=mount.id)

    def _session_lost(self, mount: Mount, worker: Worker, session: int) -> None:
        """On the watch thread. A fetcher that died is seen by its connection; one that lives may have refused the session."""
        connection = mount.attached_to
        if connection is not None:
            self._attach_soon(mount, connection, worker, session)

    def _attach_soon(self, mount: Mount, connection: Connection, worker: Worker, session: int) -> None:
        """Gives `worker` another session in place of `session`, on a thread of its own, and does not give up."""
        with self._lock:
            if self._closing.is_set():
                return
            thread = threading.Thread(
                target=self._attach_until_done,
                args=(mount, connection, worker, session),
                name=f"attach-{mount.id}",
                daemon=True,
            )
            if threads.begin(thread):
                self._repairs.add(thread)
                return
        # Its successor is given a session with everything else.
        worker.give_up("lost its fetcher, and no thread could be started to give it another")

    def _attach_until_done(self, mount: Mount, connection: Connection, worker: Worker, session: int) -> None:
        try:
            while not self._closing.wait(_SESSION_PAUSE_S):
                with mount.lock:
                    if not mount.live or mount.worker is not worker or connection.gone:
                        return  # over, or whoever replaces the worker or the fetcher brings a session
                    if mount.attached_to not in (None, connection) or worker.sessions != session:
                        return  # it has another session already
                    try:
                        self._attach_again(mount, connection)
                    except (WeightlessError, OSError) as error:
                        mount.note(error if isinstance(error, WeightlessError) else Unavailable(str(error)))
                        _log.warning("mount_not_attached", mount=mount.id, error=error)
                    else:
                        _log.info("mount_attached_again", mount=mount.id)
                        return
        finally:
            with self._lock:
                self._repairs.discard(threading.current_thread())

    def _attach_again(self, mount: Mount, connection: Connection) -> None:
        with self._attach_to(mount, connection) as session:
            if mount.worker is not None:
                with suppress(MountFailed):  # it is being replaced, and gets a session of its own
                    mount.worker.new_session(session.fileno())
        if mount.worker is not None:
            mount.note(None)

    def _attach_to(self, mount: Mount, connection: Connection) -> socket.socket:
        # Over the same connection this replaces the session only; the fetcher has the grants already.
        known = mount.attached_to is connection
        mount.attached_to = None
        ours, theirs = wire.pair()
        try:
            with theirs:
                connection.attach(
                    mount.id,
                    mount.spec.registry,
                    theirs.fileno(),
                    mount.table_fd,
                    reference=mount.spec.reference,
                    copy_out=self._settings.copy_out and mount.spec.verify == "lazy",
                )
            for name, use in () if known else mount.uses.items():
                connection.grant(mount.id, name, use.reference, use.access)
        except BaseException:
            ours.close()
            with suppress(WeightlessError):
                connection.detach(mount.id)
            raise
        mount.attached_to = connection
        return ours

    def _with_fetcher(self, step: Callable[[Connection], _Result]) -> _Result:
        tries = 0
        with self.vitals.expecting():
            while True:
                tries += 1
                connection = self.fetcher.connection()
                try:
                    return step(connection)
                except Unavailable:
                    if not connection.gone or tries == _FETCHER_TRIES:
                        raise


def _serving(mount: Mount) -> bool:
    worker = mount.worker
    return worker is not None and worker.alive and not worker.starting


def _served(mount: Mount) -> bool:
    """Whether a worker lives that serves it, or is about to."""
    worker = mount.worker
    return worker is not None and worker.alive
