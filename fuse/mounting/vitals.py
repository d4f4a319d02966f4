"""Notices a worker or a fetcher that lives and does nothing. What that means is in `fuse.mounting.pulse`.

No process is asked anything while nothing waits: the device of a mount becomes readable with the first request, this wakes one
thread, and that looks once a second as long as the mount has requests outstanding (`fuse.mounting.fusectl`; without it, as
long as the worker says that reads wait). Then the device is armed again. A worker that takes the request faster than we wake
hides it: so the kernel's counts, which cost microseconds, are read of all mounts every few seconds as well. The fetcher is asked
for a sign of life while some mount is looked at, or somebody waits for its answer.

It decides nothing but who is dead: `give_up` and `fetcher_wedged` are called, on its thread, to do something about it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from fuse.mounting import pulse
from fuse.mounting.fetcher_connection import Connection
from fuse.mounting.fusectl import Connections
from fuse.mounting.mount import Mount
from fuse.mounting.pulse import Look, Pulse
from fuse.mounting.watch import Watch
from fuse.mounting.worker import Worker

IDLE_LOOKS: Final = 5
"""How many times rarer mounts are looked at on which nothing seems to wait."""
FETCHER_SILENT_LOOKS: Final = 15
"""It may be busy with a large table, which is decoded where it answers."""
REASONS: Final = {
    "silent": "answered nothing for {} s while requests waited",
    "stuck": "left the kernel's requests where they were for {} s",
}

_log = structlog.get_logger()


@dataclass(slots=True)
class _Watched:
    mount: Mount
    active: bool = False
    pulse: Pulse = field(default_factory=Pulse)
    worker: Worker | None = None


class Vitals:
    """Looks after the mounts of one holder. Thread-safe."""

    def __init__(
        self,
        watcher: Watch,
        connections: Connections,
        *,
        fetcher: Callable[[], Connection | None],
        unserved: Callable[[Mount], None],
        give_up: Callable[[Mount, Worker, str], None],
        fetcher_wedged: Callable[[Connection, str], None],
        look_s: float = pulse.LOOK_S,
    ) -> None:
        """`fetcher` gives the connection there is, without waiting for one. `unserved` is told, each time, of a mount that has no
        worker while requests wait: it is being replaced, or that could not even begin."""
        self._watch = watcher
        self._connections = connections
        self._fetcher = fetcher
        self._unserved = unserved
        self._give_up = give_up
        self._fetcher_wedged = fetcher_wedged
        self._look_s = look_s
        self._watched: dict[int, _Watched] = {}
        """By device descriptor."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._expected = 0
        self._silent_fetcher: tuple[Connection | None, int] = (None, 0)
        self._thread = threading.Thread(target=self._run, name="vitals", daemon=True)
        self._thread.start()

    def watch(self, mount: Mount) -> None:
        """From now on until `forget`, which has to come before the device is closed."""
        with self._lock:
            self._watched[mount.device_fd] = _Watched(mount)
            self._arm(mount.device_fd)

    def forget(self, mount: Mount) -> None:
        """Forgetting what is not watched is no error."""
        with self._lock:
            if self._watched.pop(mount.device_fd, None) is not None:
                self._watch.remove(mount.device_fd)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While the caller waits for the fetcher."""
        with self._lock:
            self._expected += 1
        self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._expected -= 1

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def _arm(self, device: int) -> None:
        self._watch.once(device, lambda: self._something_waits(device))

    def _something_waits(self, device: int) -> None:
        """On the watch thread."""
        with self._lock:
            if device in self._watched:
                self._watched[device].active = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._look_s * IDLE_LOOKS)
            if self._closing.wait(self._look_s):
                return
            self._wake.clear()
            try:
                self._look_for_hidden()
                busy = [self._look(device, watched) for device, watched in self._active()]
                if self._look_at_fetcher(needed=any(busy)) or any(busy):
                    self._wake.set()
            except Exception:  # noqa: BLE001  (a thread that must not end while the mounts live)
                _log.exception("look_failed")

    def _look_for_hidden(self) -> None:
        with self._lock:
            for watched in self._watched.values():
                if not watched.active:
                    waiting = self._connections.waiting(watched.mount.minor)
                    worker = watched.mount.worker
                    report = worker.report if worker is not None else None
                    watched.active = bool(waiting if waiting is not None else report is not None and report.waiting)

    def _active(self) -> list[tuple[int, _Watched]]:
        with self._lock:
            return [(device, watched) for device, watched in self._watched.items() if watched.active]

    def _look(self, device: int, watched: _Watched) -> bool:
        """Whether it has to be looked at again."""
        mount, worker = watched.mount, watched.mount.worker
        if worker is None or not worker.alive:
            self._unserved(mount)
            return True
        if worker.starting:
            return True
        if worker is not watched.worker:
            watched.worker, watched.pulse = worker, Pulse()
        waiting = self._connections.waiting(mount.minor)
        report = worker.report
        verdict = watched.pulse.look(
            Look(
                answered=not worker.silent,
                waiting=waiting,
                reads=report.reads if report else None,
                reads_waiting=report.waiting if report else None,
            )
        )
        mount.stranded = waiting if verdict == "stuck" and not mount.resends else None
        if verdict == "idle":
            with self._lock:
                if device in self._watched:
                    watched.active = False
                    self._arm(device)
            return False
        if verdict == "silent":
            self._give_up(mount, worker, REASONS[verdict].format(round(pulse.SILENT_LOOKS * self._look_s)))
        elif verdict == "stuck" and mount.resends:
            self._give_up(mount, worker, REASONS[verdict].format(round(pulse.STUCK_LOOKS * self._look_s)))
        worker.ask()
        return True

    def _look_at_fetcher(self, *, needed: bool) -> bool:
        """Whether it has to be looked at again."""
        connection, (last, silent) = self._fetcher(), self._silent_fetcher
        if connection is None or connection.gone:
            return self._expected > 0
        if not needed and self._expected == 0:
            return False
        silent = silent + 1 if connection is last and connection.silent else 0
        self._silent_fetcher = connection, silent
        if silent == FETCHER_SILENT_LOOKS:
            self._fetcher_wedged(connection, REASONS["silent"].format(round(silent * self._look_s)))
        connection.ping()
        return True
