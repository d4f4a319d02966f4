"""From what a holder knows of its mounts to `MountStatus`: asks the workers and the fetcher, and never waits long for them.

`health` judges from memory. What is looked at first is what a person would mend first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from fuse.errors import Fault, Unavailable, from_fault
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.fetcher_connection import Connection
from fuse.mounting.keeping import Keeping
from fuse.mounting.ledger import Ledger
from fuse.mounting.mount import Mount
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.reasons import Reason, reason_of
from fuse.mounting.status import Health, MountStatus

_LIMIT_S: Final = 1.0
_FETCHER_WEDGED_S: Final = 10.0
_KEEPER_GRACE_S: Final = 5.0
"""A keeper that dies is replaced at once, and nobody need hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all mounts of a holder share."""

    fetcher: FetcherClient
    keeping: Keeping
    ledger: Ledger


def describe(mounts: Sequence[Mount], around: Surroundings) -> list[MountStatus]:
    """The status of each mount, within about a second for all of them together."""
    deadline = time.monotonic() + _LIMIT_S
    # Nobody's lock is held: what may be None a moment later is read once.
    for worker in [mount.worker for mount in mounts]:
        if worker is not None:
            worker.ask()
    fetcher = around.fetcher.current
    own = fetcher.question("") if fetcher is not None and fetcher.counts else None
    connections = [mount.attached_to for mount in mounts]
    questions = [
        connection.question(mount.id) if connection is not None else None
        for mount, connection in zip(mounts, connections, strict=True)
    ]
    for mount, connection, question in zip(mounts, connections, questions, strict=True):
        progress = question.wait_answer(deadline) if question is not None else None
        if progress is not None and connection is not None:
            mount.progress = progress
            around.ledger.fetcher_said(mount.id, connection.pid, progress)
    if own is not None and (said := own.wait_answer(deadline)) is not None and said.totals is not None and fetcher:
        around.ledger.fetcher_counted(fetcher.pid, said.totals)
    table = MountTable.read()
    return [_describe(mount, table, around, deadline) for mount in mounts]


def _describe(mount: Mount, table: MountTable, around: Surroundings, deadline: float) -> MountStatus:
    worker, progress = mount.worker, mount.progress
    report = worker.wait_report(deadline) if worker is not None else None
    if worker is not None and report is not None:
        around.ledger.worker_said(mount.id, worker.pid, report)
    around.ledger.restarted(mount.id, mount.history.told.count)
    sums = around.ledger.of(mount.id)
    return MountStatus(
        id=mount.id,
        mountpoint=os.fspath(mount.mountpoint),
        reference=mount.spec.reference,
        digest=mount.spec.parts[0].digest,
        worker_pid=worker.pid if worker is not None and worker.alive else None,
        keeper_pid=around.keeping.pid,
        fetcher_pid=around.fetcher.pid,
        holder_pid=os.getpid(),
        bytes_cached=progress.bytes_cached if progress else 0,
        bytes_total=progress.bytes_total if progress else mount.bytes_total,
        bytes_fetched=sums.bytes_fetched,
        requests=sums.requests,
        prefetch=mount.prefetch,
        rate_bytes_per_s=progress.rate_bytes_per_s if progress else 0.0,
        reads=sums.reads,
        bytes_read=sums.bytes_read,
        waiting=report.waiting if report else 0,
        waited_s=sums.waited_s,
        open_files=report.open_files if report else 0,
        condition=health(mount, around),
        targets=tuple(
            os.fspath(entry.mountpoint)
            for entry in table.of_device(mount.device)
            if entry.mountpoint != mount.mountpoint
        ),
        grants=tuple(mount.uses),
        worker_restarts=mount.history.told,
        fetcher_restarts=around.fetcher.history.told,
        keeper_restarts=around.keeping.history.told,
    )


def health(mount: Mount, around: Surroundings) -> Health:
    """From memory: what its processes told last. Workers tell of a change by themselves.

    `since` stays as long as the state and its reason do, whoever tells of them.
    """
    found, before = _judge(mount, around), mount.health
    if found.state != "healthy":
        same = found.cause == before.cause and before.since
        found = msgspec.structs.replace(found, since=before.since if same else found.since or time.time())
    found = msgspec.structs.replace(found, proven_at=mount.proven_at)
    mount.health = found
    return found


def _judge(mount: Mount, around: Surroundings) -> Health:
    worker = mount.worker
    condition = worker.condition if worker is not None else None
    progress = mount.progress
    if condition is not None and condition.fault is not None and condition.permanent:
        return _by_fault("broken", condition.fault, condition.since)
    if progress is not None and progress.failed_by is not None:
        return _by_fault("broken", progress.failed_by, progress.stalled_since)
    ours = _of_worker(mount, around.fetcher) or _of_fetcher(mount, around.fetcher)
    if ours is not None:
        return ours
    if condition is not None and condition.fault is not None:
        return _by_fault("degraded", condition.fault, condition.since)
    if progress is not None and progress.stalled_by is not None:
        return _by_fault("degraded", progress.stalled_by, progress.stalled_since)
    if mount.stranded:
        words = f"a dead worker left {mount.stranded} requests that no other can answer (kernel older than 6.9)"
        return _degraded(Reason.WORKER_REPLACED, words, mount.history.told.at)
    away_since = around.keeping.away_since
    if away_since and time.time() - away_since >= _KEEPER_GRACE_S:
        return _degraded(Reason.KEEPER_DOWN, "there is no keeper, and none can be had", away_since)
    return Health()


def _of_worker(mount: Mount, fetcher: FetcherClient) -> Health | None:
    trouble = mount.trouble or fetcher.trouble
    loop = mount.history.loop(time.monotonic())
    # Without a fetcher none can be started: that is to be mended, not this.
    if loop is not None and fetcher.trouble is None:
        return _degraded(Reason.WORKER_CRASH_LOOP, f"its worker died {loop[0]}", loop[1])
    worker = mount.worker
    if worker is not None and worker.alive:
        return None
    if trouble is not None:
        code = Reason.FETCHER_DOWN if fetcher.trouble is not None else Reason.WORKER_REPLACED
        return _degraded(code, f"no worker serves it: {trouble}", mount.trouble_since)
    if mount.history.told.count == 0:
        return _degraded(Reason.RECOVERING, "its worker is being started", 0.0)
    return _degraded(Reason.WORKER_REPLACED, "its worker is being replaced", mount.history.told.at)


def _of_fetcher(mount: Mount, fetcher: FetcherClient) -> Health | None:
    trouble = mount.trouble or fetcher.trouble
    if trouble is not None:
        # What is left of a worker that could not be started, while the next one is, says nothing of the fetcher.
        ours = fetcher.trouble is not None or isinstance(trouble, Unavailable)
        return _degraded(Reason.FETCHER_DOWN if ours else Reason.WORKER_REPLACED, str(trouble), mount.trouble_since)
    loop = fetcher.history.loop(time.monotonic())
    if loop is not None:
        return _degraded(Reason.FETCHER_CRASH_LOOP, f"the fetcher died {loop[0]}", loop[1])
    connection: Connection | None = mount.attached_to
    silent_s = connection.silent_s if connection is not None else 0.0
    if silent_s >= _FETCHER_WEDGED_S:
        words = "the fetcher runs and does not answer"
        return _degraded(Reason.FETCHER_WEDGED, words, time.time() - silent_s)
    return None


def _degraded(code: Reason, words: str, since: float) -> Health:
    return Health(state="degraded", reason=words, reason_code=code, since=since)


def _by_fault(state: Literal["degraded", "broken"], fault: Fault, since: float | None) -> Health:
    return Health(state=state, reason=str(from_fault(fault)), reason_code=reason_of(fault.kind), since=since or 0.0)
