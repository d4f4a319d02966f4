"""Sends events, on a thread of its own: who tells one never waits, and never hears of a failure.

What waits is bounded. While the API server is away the events are kept and tried again, with pauses; what is older than ten
minutes, what finds no room, and what is refused, is dropped and counted. A drop is in the metrics, not in anybody's way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

import structlog

from csi.kubernetes.events import Event, Told, Utterance
from fuse.errors import Conflict, NotFound, Unavailable, WeightlessError

MOST_WAITING: Final = 256
_TOO_OLD_S: Final = 600.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_FAREWELL_S: Final = 2.0
_COMPLAIN_EVERY_S: Final = 60.0

_log = structlog.get_logger()


class Api(Protocol):
    """What is needed of `csi.kubernetes.api.ApiServer`."""

    def create(self, path: str, document: dict[str, Any]) -> None: ...

    def merge(self, path: str, change: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Observer(Protocol):
    """What is needed of `csi.metrics.Metrics`."""

    def event_sent(self, reason: str) -> None: ...

    def event_dropped(self, cause: str) -> None: ...


class Recorder:
    """`tell` from any thread; `close` gives what waits a moment."""

    def __init__(
        self,
        api: Api,
        *,
        controller: str,
        instance: str,
        observer: Observer,
        first_pause_s: float = _FIRST_PAUSE_S,
        most_waiting: int = MOST_WAITING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._controller = controller
        self._instance = instance
        self._observer = observer
        self._first_pause_s = first_pause_s
        self._most_waiting = most_waiting
        self._clock = clock
        self._told = Told()
        self._waiting: deque[Utterance] = deque()
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._complained_at = 0.0
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        with self._changed:
            if self._ends_at is not None:
                return
            utterance = self._told.admit(event)
            if utterance is None:
                return
            if len(self._waiting) >= self._most_waiting:
                self._told.forget(event)
                self._observer.event_dropped("queue_full")
                return
            self._waiting.append(utterance)
            self._changed.notify()

    def close(self) -> None:
        """What waits is sent for two seconds more; a request under way is not waited for longer than that."""
        with self._changed:
            self._ends_at = time.monotonic() + _FAREWELL_S
            self._changed.notify()
        self._thread.join(_FAREWELL_S + 0.5)

    def _run(self) -> None:
        pause_s = 0.0
        try:
            while (utterance := self._next(pause_s)) is not None:
                try:
                    pause_s = self._deliver(utterance, pause_s)
                except Exception:  # noqa: BLE001  (the edge of a thread that must outlive every event)
                    _log.exception("event_failed")
                    self._done(utterance)
                    self._observer.event_dropped("refused")
        finally:
            self._api.close()

    def _next(self, pause_s: float) -> Utterance | None:
        """The first that waits, after a pause; None when it is time to end."""
        with self._changed:
            if pause_s:
                self._changed.wait_for(lambda: self._ends_at is not None, pause_s)
                if self._ends_at is not None:
                    return None  # it did not answer a moment ago
            self._changed.wait_for(lambda: self._waiting or self._ends_at is not None)
            if self._ends_at is not None and (not self._waiting or time.monotonic() >= self._ends_at):
                return None
            return self._waiting[0]

    def _deliver(self, utterance: Utterance, pause_s: float) -> float:
        """How long to wait before the next."""
        if self._clock() - utterance.event.at > _TOO_OLD_S:
            self._drop(utterance, "too_old")
            return 0.0
        try:
            self._send(utterance)
        except Unavailable as error:
            self._complain(error)
            return min(_LONGEST_PAUSE_S, pause_s * 2 or self._first_pause_s)
        except WeightlessError as error:
            self._complain(error)
            self._drop(utterance, "refused")
        else:
            self._done(utterance)
            self._observer.event_sent(utterance.event.reason.value)
        return 0.0

    def _send(self, utterance: Utterance) -> None:
        if utterance.again:
            try:
                self._api.merge(utterance.path, utterance.series())
            except NotFound:
                # The API server keeps events for an hour.
                with self._changed:
                    utterance = self._told.renew(utterance.event)
            else:
                return
        with suppress(Conflict):  # it is there: an earlier try of ours, whose answer was lost
            self._api.create(utterance.collection, utterance.document(self._controller, self._instance))

    def _drop(self, utterance: Utterance, cause: str) -> None:
        self._done(utterance)
        with self._changed:
            self._told.forget(utterance.event)
        self._observer.event_dropped(cause)

    def _done(self, utterance: Utterance) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is utterance:
                self._waiting.popleft()

    def _complain(self, error: WeightlessError) -> None:
        now = time.monotonic()
        if not self._complained_at or now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            _log.warning("event_not_sent", error=error)
