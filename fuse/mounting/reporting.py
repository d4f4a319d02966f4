"""From what a holder knows of its mounts to `MountStatus`: asks the workers and the fetcher, and never waits long for them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from fuse.errors import Fault, WeightlessError, from_fault
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.mount import Mount
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.status import Health, MountStatus

_LIMIT_S: Final = 1.0


def describe(mounts: Sequence[Mount], fetcher: FetcherClient, keeper_pid: int | None) -> list[MountStatus]:
    """The status of each mount, within about a second for all of them together."""
    deadline = time.monotonic() + _LIMIT_S
    for mount in mounts:
        if mount.worker is not None:
            mount.worker.ask()
    for mount in mounts:
        _ask_fetcher(mount, deadline)
    table = MountTable.read()
    return [_describe(mount, table, fetcher, keeper_pid, deadline) for mount in mounts]


def _ask_fetcher(mount: Mount, deadline: float) -> None:
    connection = mount.attached_to
    left_s = deadline - time.monotonic()
    if connection is None or connection.gone or left_s <= 0:
        return
    try:
        mount.progress = connection.progress(mount.id, left_s)
    except WeightlessError:
        return


def _describe(
    mount: Mount, table: MountTable, fetcher: FetcherClient, keeper_pid: int | None, deadline: float
) -> MountStatus:
    worker, progress = mount.worker, mount.progress
    report = worker.wait_report(deadline) if worker is not None else None
    return MountStatus(
        id=mount.id,
        mountpoint=os.fspath(mount.mountpoint),
        reference=mount.spec.reference,
        digest=mount.spec.parts[0].digest,
        worker_pid=worker.pid if worker is not None and worker.alive else None,
        keeper_pid=keeper_pid,
        fetcher_pid=fetcher.pid,
        holder_pid=os.getpid(),
        bytes_cached=progress.bytes_cached if progress else 0,
        bytes_total=progress.bytes_total if progress else mount.bytes_total,
        bytes_fetched=progress.bytes_fetched if progress else 0,
        requests=progress.requests if progress else 0,
        prefetch=mount.prefetch,
        rate_bytes_per_s=progress.rate_bytes_per_s if progress else 0.0,
        reads=report.reads if report else 0,
        bytes_read=report.bytes_read if report else 0,
        waiting=report.waiting if report else 0,
        waited_s=report.waited_s if report else 0.0,
        open_files=report.open_files if report else 0,
        condition=health(mount, fetcher),
        targets=tuple(
            os.fspath(entry.mountpoint)
            for entry in table.of_device(mount.device)
            if entry.mountpoint != mount.mountpoint
        ),
        grants=tuple(mount.uses),
    )


def health(mount: Mount, fetcher: FetcherClient) -> Health:
    """From memory: what its processes told last. Workers tell of a change by themselves."""
    worker, progress = mount.worker, mount.progress
    condition = worker.condition if worker is not None else None
    if condition is not None and condition.fault is not None and condition.permanent:
        return Health(state="broken", reason=_words(condition.fault), since=condition.since)
    if progress is not None and progress.failed_by is not None:
        return Health(state="broken", reason=_words(progress.failed_by), since=progress.stalled_since or 0.0)
    trouble = mount.trouble or fetcher.trouble
    if worker is None or not worker.alive:
        reason = f"no worker serves it: {trouble}" if trouble else "its worker is being replaced"
        return Health(state="degraded", reason=reason, since=mount.trouble_since)
    if trouble is not None:
        return Health(state="degraded", reason=str(trouble), since=mount.trouble_since)
    if condition is not None and condition.fault is not None:
        return Health(state="degraded", reason=_words(condition.fault), since=condition.since)
    if progress is not None and progress.stalled_by is not None:
        return Health(state="degraded", reason=_words(progress.stalled_by), since=progress.stalled_since or 0.0)
    return Health()


def _words(fault: Fault) -> str:
    return str(from_fault(fault))
