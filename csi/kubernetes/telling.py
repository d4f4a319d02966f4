"""What the owner of a pod must know: what became of the publish, and how the volume fares. It decides what is told and in which
words; `Recorder` sends it.

A published volume is looked at every few seconds, from memory. That it is broken is told at once; that it is degraded, when it
has been for longer than what heals unseen; that it is healed, only where something else was told before.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from csi.kubernetes.events import Event, EventReason, Pod, pod_of
from csi.redaction import clean
from csi.volumes import VolumeRecord
from fuse.errors import Cancelled, InProgress, WeightlessError
from fuse.mounting.status import Health

LOOK_S: Final = 5.0
_PATIENCE_S: Final = 10.0
"""How long a volume may be degraded before its owner is told: a worker is replaced in less than one."""
_POD = re.compile(r"/pods/([^/]+)/volumes/kubernetes\.io~csi/")
_CONTEXT: Final = "csi.storage.k8s.io/pod"

_log = structlog.get_logger()
Tell = Callable[[Event], None]
Volumes = Callable[[], Iterable[tuple[VolumeRecord, Health]]]


def pod_at(target: str, owner: str) -> Pod | None:
    """The pod that a target path belongs to, which names it by its uid; `owner` is its namespace and name."""
    found = _POD.search(target)
    namespace, _, name = owner.partition("/")
    return pod_of(namespace, name, found[1]) if found else None


class Teller:
    """Called by the calls of kubelet, which never wait for it, and by `ConditionWatch`."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.time) -> None:
        self._tell = tell
        self._clock = clock
        self._told: dict[str, Health] = {}
        """What was last told of a volume, unless that it is well."""

    def published(self, record: VolumeRecord, served_by: str) -> None:
        digest = record.pinned.rpartition("@")[2]
        how = "from the node's cache" if served_by == "native" else "lazily"
        size = f"{_size(record.bytes_total)} in {record.files} files"
        note = f"volume {_volume_of(record)}: {record.reference} is {digest} ({size}), served {how}"
        self._say(pod_at(record.target, record.pod), record.volume_id, EventReason.RESOLVED, digest, note)

    def refused(
        self, volume_id: str, target: str, context: Mapping[str, str], error: WeightlessError, message: str
    ) -> None:
        """`message`: what kubelet is told, without any secret."""
        if isinstance(error, InProgress | Cancelled):
            return  # the call that is under way has more to tell
        reason = EventReason.UNAVAILABLE if error.temporary else EventReason.REFUSED
        owner = f"{context.get(f'{_CONTEXT}.namespace', '')}/{context.get(f'{_CONTEXT}.name', '')}"
        self._say(pod_at(target, owner), volume_id, reason, error.kind, message)

    def look(self, volumes: Iterable[tuple[VolumeRecord, Health]]) -> None:
        """Tells of what has changed since the last look."""
        now, seen = self._clock(), set()
        for record, health in volumes:
            seen.add(record.name)
            told = self._told.get(record.name, Health())
            if health.cause == told.cause:
                continue
            if health.state == "healthy":
                del self._told[record.name]
                self._say_condition(record, EventReason.HEALED, told.cause[1], health)
            elif health.state == "broken":
                self._told[record.name] = health
                self._say_condition(record, EventReason.BROKEN, health.cause[1], health)
            elif not health.since or now - health.since >= _PATIENCE_S:
                self._told[record.name] = health
                self._say_condition(record, EventReason.DEGRADED, health.cause[1], health)
        for gone in self._told.keys() - seen:
            del self._told[gone]

    def _say_condition(self, record: VolumeRecord, reason: EventReason, cause: str, health: Health) -> None:
        note = f"volume {_volume_of(record)}: {health.sentence()}"
        self._say(pod_at(record.target, record.pod), record.volume_id, reason, cause, note)

    def _say(self, pod: Pod | None, volume_id: str, reason: EventReason, cause: str, note: str) -> None:
        """Nothing for a volume of no pod: there is nobody to tell."""
        if pod is not None:
            self._tell(
                Event(pod=pod, volume_id=volume_id, reason=reason, cause=cause, note=clean(note), at=self._clock())
            )


class ConditionWatch:
    """The thread that has the `Teller` look."""

    def __init__(self, teller: Teller, volumes: Volumes, look_s: float) -> None:
        self._teller = teller
        self._volumes = volumes
        self._look_s = look_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conditions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._look_s):
            try:
                self._teller.look(self._volumes())
            except Exception:  # noqa: BLE001  (the edge of a thread)
                _log.exception("condition_watch_failed")


def _volume_of(record: VolumeRecord) -> str:
    """As the pod's author calls it, who has never seen a volume handle."""
    parts = record.target.rsplit("/", 2)
    return parts[-2] if len(parts) == 3 else record.volume_id


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
