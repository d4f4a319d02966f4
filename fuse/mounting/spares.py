"""A worker that is started before anybody needs it: to start one (Python, its imports) is most of a publish, and of a stall.

It has been given nothing yet, so it has no mount, no privileges to lose and nothing to clean up; it ends with its holder, as all
workers do. There is one at a time. The next one is made a while after the last was taken: what took it has the processor to
itself first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from fuse import threads
from fuse.errors import WeightlessError
from fuse.mounting.watch import Watch
from fuse.mounting.worker import Worker

PAUSE_S: Final = 2.0

_log = structlog.get_logger()


class Spares:
    """Thread-safe. Workers are made as they are needed, and one ahead if `wanted`. Call `refill` first, `close` last."""

    def __init__(self, watcher: Watch, *, log_level: str, wanted: bool) -> None:
        self._watch = watcher
        self._log_level = log_level
        self._wanted = wanted
        self._lock = threading.Lock()
        self._spare: Worker | None = None
        self._timer: threading.Timer | None = None
        self._closed = False

    def take(self, on_end: Callable[[Worker], None], on_session_lost: Callable[[Worker, int], None]) -> Worker:
        """A worker that waits for its `start`. Both are called on the watch thread. Raises OSError when none can be started."""
        with self._lock:
            worker, self._spare = self._spare, None
        self.refill(PAUSE_S)
        if worker is not None and worker.assign(on_end, on_session_lost):
            return worker
        return Worker(self._watch, log_level=self._log_level, on_end=on_end, on_session_lost=on_session_lost)

    @property
    def ready(self) -> bool:
        """Whether there is one now."""
        with self._lock:
            return self._spare is not None

    def refill(self, pause_s: float = 0.0) -> None:
        """Has the next one made after a pause, on a thread of its own; nothing if there is one, or none is wanted."""
        with self._lock:
            if self._wanted and not self._closed and self._timer is None and self._spare is None:
                timer = threading.Timer(pause_s, self._make)
                timer.daemon = True
                self._timer = timer if threads.begin(timer) else None

    def close(self) -> None:
        """Returns when the spare one is gone, and none will be made."""
        with self._lock:
            self._closed = True
            timer = self._timer
        if timer is not None:
            timer.cancel()
            timer.join()
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.end(drain=False)

    def _make(self) -> None:
        worker: Worker | None = None
        try:
            worker = Worker(self._watch, log_level=self._log_level, on_end=self._ended)
        except (OSError, WeightlessError) as error:
            _log.warning("spare_worker_not_started", error=str(error))  # who needs one tries again, and says so
        with self._lock:
            self._timer = None
            if worker is not None and worker.alive:
                self._spare = worker

    def _ended(self, worker: Worker) -> None:
        """On the watch thread: it died of itself, or was killed. The next one is made when somebody needed one."""
        with self._lock:
            if self._spare is worker:
                self._spare = None
                _log.warning("spare_worker_gone", pid=worker.pid, last_words=worker.last_words)
        threads.begin(
            threading.Thread(target=worker.end, kwargs={"drain": False}, name="spare-worker-end", daemon=True)
        )
