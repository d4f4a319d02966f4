"""Credentials of volumes that are being read: those that end are looked up again, by the same rung, before anybody is refused.

A model is read lazily for hours, and a token lives for one. A repeated publish brings newer tokens (`Publisher`); what else ends
is looked after here: answers of credential providers, and files that the administrator changes, such as a secret that kubelet
swaps. So is what the registry stops to take before it ends. One thread looks for what is due; `Lanes` renew it, where a provider
that hangs keeps nobody of another registry waiting. A renewal that fails changes nothing: the mount goes on with what it has.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Hashable
from typing import Final, Protocol

import structlog

from csi.admissions import Admissions
from csi.lanes import Lanes
from csi.publisher import Publisher
from csi.volumes import VolumeRecord
from fuse.credentials.given import AMBIENT, PROVIDED
from fuse.errors import WeightlessError
from fuse.mounting.reasons import Reason

LOOK_S: Final = 2.0
_FIRST_PAUSE_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 300.0
_AFTER_START_S: Final = 60.0
"""What a restarted plugin does not know the end of is looked up within this time."""

_log = structlog.get_logger()


class Marked(Protocol):
    """What is needed of `fuse.mounting.access.AccessReader`."""

    def marker(self) -> Hashable: ...


class Renewals:
    """Call `start` when what was published before is known, `close` last."""

    def __init__(self, publisher: Publisher, admissions: Admissions, access: Marked, *, look_s: float = LOOK_S) -> None:
        self._publisher = publisher
        self._admissions = admissions
        self._access = access
        self._look_s = look_s
        self._marker: Hashable = None
        self._refused: dict[str, tuple[float, float]] = {}
        """By record of a volume that is refused its bytes: when to ask for fresh credentials (monotonic), and the pause after."""
        self._lanes = Lanes("renewal")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewals", daemon=True)

    def start(self) -> None:
        now = time.monotonic()
        for record in self._publisher.records.all():
            if record.rung in AMBIENT:
                soon_s = _AFTER_START_S * random.uniform(0.5, 1.0)  # noqa: S311  (so that not all come at once)
                self._admissions.expect(record.name, record.rung, now + soon_s)
        self._marker = self._access.marker()
        self._thread.start()

    def close(self) -> None:
        """Ends all after what is done now; `Operations.end` makes that short."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._lanes.close()

    def _run(self) -> None:
        while not self._closing.wait(self._look_s):
            try:
                self._look()
            except Exception:  # noqa: BLE001  (the edge of a thread: a disk that fails for a moment must not end it)
                _log.exception("renewals_failed")

    def _look(self) -> None:
        marker = self._access.marker()
        if marker != self._marker:
            self._marker = marker
            self._admissions.end(AMBIENT | PROVIDED, time.monotonic())
        now = time.monotonic()
        self._ask_afresh(now)
        for name in self._admissions.due(now):
            record = self._publisher.records.get(name)
            if record is None:
                self._admissions.forget(name)
            else:
                self._offer(record, fresh=False)

    def _ask_afresh(self, now: float) -> None:
        """For the volumes whose credentials the registry does not take although they have not ended, as often as it may help."""
        refused = {}
        for record in self._publisher.records.all():
            if record.rung not in AMBIENT | PROVIDED:
                continue
            if self._publisher.health(record).reason_code != Reason.REGISTRY_REFUSED:
                continue
            due, pause_s = self._refused.get(record.name, (now, _FIRST_PAUSE_S))
            if due <= now and self._offer(record, fresh=True):
                due, pause_s = now + pause_s, min(_LONGEST_PAUSE_S, pause_s * 2)
            refused[record.name] = due, pause_s
        self._refused = refused

    def _offer(self, record: VolumeRecord, *, fresh: bool) -> bool:
        return self._lanes.offer(record.name, record.registry, lambda: self._renew(record, fresh=fresh))

    def _renew(self, record: VolumeRecord, *, fresh: bool) -> None:
        try:
            done = self._publisher.renew(record, fresh=fresh)
        except WeightlessError as error:  # somebody else is at this volume just now
            _log.debug("renewal_put_off", volume_id=record.volume_id, error=error)
            done = False
        except Exception as error:  # noqa: BLE001  (it is tried again, as after every other fault)
            _log.error("renewal_failed", volume_id=record.volume_id, error=error)
            done = False
        if not done:
            self._admissions.put_off(record.name, time.monotonic())
