"""After a start: what the records, the mount table and the manager say is brought to agree, and is kept so.

`recover` does at once what needs no registry: it undoes what was half done, adopts what is there, and removes what belongs to
nobody. What has to be mounted again needs the registry, so `Mender` tries until it succeeds or the volume is unpublished. One
thread looks for what is due; it is done in `Lanes`, where a registry that hangs keeps no volume of another one waiting.
"""

from __future__ import annotations

import math
import random
import threading
import time
from pathlib import Path
from typing import Final

import structlog

from csi import mounts
from csi.lanes import Lanes
from csi.mounts import SharedMounts
from csi.operations import Operation
from csi.publisher import Publisher
from csi.targets import TargetRules
from csi.volumes import VolumeRecord
from fuse.errors import Cancelled, WeightlessError
from fuse.mounting.reasons import Reason, reason_of
from fuse.mounting.status import Health

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_SOON_S: Final = 0.2
_UNDER_WAY: Final = math.inf

_log = structlog.get_logger()


class Mender:
    """Tries again what did not succeed: remounts and undoings. Its thread is started by the first thing to do."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._lock = threading.Lock()
        self._due: dict[str, tuple[float, float]] = {}
        """By record: when to try (monotonic, or under way), and the pause after the next failure."""
        self._broken: dict[str, Health] = {}
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._lanes = Lanes("mending")

    def add(self, record: VolumeRecord, code: Reason, words: str) -> None:
        with self._lock:
            if self._closing:
                return
            if self._due.get(record.name, (_UNDER_WAY,))[0] == _UNDER_WAY:
                # What is under way may have looked before this happened: once more.
                self._due[record.name] = time.monotonic(), _FIRST_PAUSE_S
            new = record.name not in self._broken
            self._broken.setdefault(
                record.name, Health(state="broken", reason=words, reason_code=code, since=time.time())
            )
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mender", daemon=True)
                self._thread.start()
        self._wake.set()
        if new and record.stage == "published":
            _log.error("volume_broken", volume_id=record.volume_id, target=record.target, reason=code, words=words)

    def health(self, record: VolumeRecord) -> Health:
        """Of a published volume, from memory: what is to be mended, else the condition of its mount."""
        with self._lock:
            broken = self._broken.get(record.name)
        return broken or self._publisher.health(record)

    def close(self) -> None:
        """Ends all after what is done now; `Operations.end` makes that short."""
        with self._lock:
            self._closing = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join()
        self._lanes.close()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            with self._lock:
                if self._closing:
                    return
                now = time.monotonic()
                ready = [name for name, (due, _) in self._due.items() if due <= now]
                for name in ready:
                    self._due[name] = _UNDER_WAY, self._due[name][1]
            for name in ready:
                self._offer(name)
            with self._lock:
                next_at = min((due for due, _ in self._due.values()), default=_UNDER_WAY)
            self._wake.wait(None if next_at == _UNDER_WAY else max(0.0, next_at - time.monotonic()))

    def _offer(self, name: str) -> None:
        record = self._publisher.records.get(name)
        # What is taken away needs no registry, and so waits for none.
        group = record.registry if record is not None and record.stage == "published" else ""
        if not self._lanes.offer(name, group, lambda: self._try(name)):
            with self._lock:  # it is under way still, or there is no thread for it
                self._due[name] = time.monotonic() + _SOON_S, self._due[name][1]

    def _try(self, name: str) -> None:
        record = self._publisher.records.get(name)
        failure: Exception | None = None
        if record is not None:
            try:
                self._mend(record)
            except Cancelled as error:  # kubelet came in between, or we are ending
                failure = error
            except Exception as error:  # noqa: BLE001  (it is tried again, as after every other fault)
                failure = error
                _log.warning("mend_failed", volume_id=record.volume_id, target=record.target, error=error)
        with self._lock:
            due, pause_s = self._due[name]
            if failure is None:
                if due == _UNDER_WAY:
                    del self._due[name]
                    self._broken.pop(name, None)
                return
            if record is not None and record.stage == "published" and not isinstance(failure, Cancelled):
                since = self._broken[name].since if name in self._broken else time.time()
                code = reason_of(failure.kind) if isinstance(failure, WeightlessError) else Reason.INTERNAL
                self._broken[name] = Health(
                    state="broken", reason=f"cannot be mounted again: {failure}", reason_code=code, since=since
                )
            due = time.monotonic() + pause_s * random.uniform(0.8, 1.2)  # noqa: S311  (jitter)
            self._due[name] = (due, min(_LONGEST_PAUSE_S, pause_s * 2))
        self._wake.set()

    def _mend(self, record: VolumeRecord) -> None:
        def work(operation: Operation[None]) -> None:
            # Read again: kubelet may have been faster.
            current = self._publisher.records.get(record.name)
            if current is None:
                return
            if current.stage == "published":
                self._publisher.remount(operation, current)
                with self._lock:
                    broken = self._broken.get(record.name, Health())
                _log.info(
                    "volume_healed",
                    volume_id=current.volume_id,
                    target=current.target,
                    reason=broken.reason_code,
                    duration_s=round(time.time() - broken.since, 1) if broken.since else 0.0,
                )
            else:
                self._publisher.undo(current)

        operation: Operation[None] = Operation("repair", record.volume_id, record.name)
        # An unpublish or publish that is under way makes this superfluous, or is followed by another try.
        self._publisher.operations.run(operation, record.target, work, limit_s=0)


def recover(publisher: Publisher, shared: SharedMounts, rules: TargetRules, mender: Mender) -> None:
    """Brings disk, mount table and manager to agree. Call once, before serving, with the manager started."""
    records = publisher.records
    for record in records.all():
        if record.stage != "published" or _vanished(record, rules):
            _try_to_undo(publisher, record, mender)
        elif shared.is_left(record.identity):
            _log.error("volume_left", volume_id=record.volume_id, target=record.target, fix="upgrade again")
        elif not publisher.is_served(record):
            _try_to_show(publisher, shared, record, mender)
    if records.unreadable:
        # A mount without a record may belong to one of these; a pod may be reading it.
        for path in records.unreadable:
            _log.error(
                "record_unreadable", path=str(path), fix="run the version that wrote it, or unpublish the volume"
            )
        return
    wanted: dict[str, set[str]] = {}
    for record in records.all():
        wanted.setdefault(record.identity, set()).add(record.grant)
    _remove_orphans(publisher, rules)
    shared.sweep(wanted)
    _log.info("volumes_recovered", volumes=len(records.all()))


def _vanished(record: VolumeRecord, rules: TargetRules) -> bool:
    """Whether the pod went while nobody was here to be told: kubelet asks nothing about it any more."""
    return rules.is_target(Path(record.target)) and rules.parse(record.target).vanished


def _try_to_undo(publisher: Publisher, record: VolumeRecord, mender: Mender) -> None:
    try:
        publisher.undo(record)
        _log.info("volume_undone", volume_id=record.volume_id, target=record.target, stage=record.stage)
    except WeightlessError as error:
        _log.warning("undo_failed", volume_id=record.volume_id, error=error)
        mender.add(record, reason_of(error.kind), str(error))


def _try_to_show(publisher: Publisher, shared: SharedMounts, record: VolumeRecord, mender: Mender) -> None:
    """Binds again what only lost its bind; all else needs the registry."""
    if shared.is_live(record.identity):
        try:
            publisher.remount(Operation("repair", record.volume_id, record.name), record)
        except WeightlessError as error:
            _log.warning("bind_failed", volume_id=record.volume_id, error=error)
        else:
            return
    mender.add(record, Reason.RECOVERING, "the file system went with the process that served it, and is mounted again")


def _remove_orphans(publisher: Publisher, rules: TargetRules) -> None:
    """Binds of ours at places where kubelet publishes, of which no record knows."""
    known = {record.target for record in publisher.records.all()}
    for path in mounts.binds_below(rules.root):
        if str(path) in known or not rules.is_target(path):
            continue
        target = rules.parse(str(path))
        try:
            mounts.unbind(target)
            target.remove()
            _log.info("orphan_bind_removed", target=str(path))
        except WeightlessError as error:
            _log.warning("orphan_bind_stays", target=str(path), error=error)
