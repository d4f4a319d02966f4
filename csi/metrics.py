"""What a plugin counts, as Prometheus metrics. docs/metrics.md lists them; a test compares.

Labels are small and fixed: a state, a reason, a method, a code, a role. Never a reference, a digest, a path or a name of a pod or
registry: those are without bound, and not for everybody to see. All is taken from memory when it is scraped, but for one round
of questions to the processes that takes a second at most; scrapes that come meanwhile get the answer before.
"""

from __future__ import annotations

import os
import threading
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fuse.errors import every_error
from fuse.fetch import tally
from fuse.fetch.tally import CacheRoom
from fuse.mounting.reasons import Reason, State
from fuse.mounting.status import Health, HolderTotals, MountStatus
from weightless import __version__

_BUCKETS_S: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Kubelet gives up after two minutes."""
_UNWELL: Final[tuple[State, ...]] = ("degraded", "broken")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Source(Protocol):
    """What is needed of a `MountManager`."""

    def statuses(self) -> list[MountStatus]: ...

    def totals(self) -> HolderTotals: ...


class Metrics:
    """All metrics of one plugin, in a registry of their own."""

    def __init__(self, source: Source | None = None, volumes: Callable[[], Sequence[Health]] = list) -> None:
        """Without `source`, of a plugin that mounts nothing."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter that nobody asks for
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "weightless_csi_requests", "CSI calls that ended.", ("method", "code"), registry=self.registry
        )
        self._durations = Histogram(
            "weightless_csi_request_duration_seconds",
            "How long CSI calls took.",
            ("method",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._events = Counter(
            "weightless_events", "Kubernetes Events on pods that were sent.", ("reason",), registry=self.registry
        )
        self._events_dropped = Counter(
            "weightless_events_dropped", "Events that could not be sent.", ("cause",), registry=self.registry
        )
        Info("weightless_build", "The version that runs.", registry=self.registry).info({"version": __version__})
        if source is not None:
            self.registry.register(_NodeCollector(source, volumes))
        ProcessCollector(registry=self.registry)

    def observe_call(self, method: str, code: str, duration_s: float) -> None:
        self._calls.labels(method, code).inc()
        self._durations.labels(method).observe(duration_s)

    def event_sent(self, reason: str) -> None:
        self._events.labels(reason).inc()

    def event_dropped(self, cause: str) -> None:
        self._events_dropped.labels(cause).inc()


@dataclass(frozen=True, slots=True)
class _Snapshot:
    mounts: Sequence[MountStatus]
    volumes: Sequence[Health]
    totals: HolderTotals


class _NodeCollector(Collector):
    def __init__(self, source: Source, volumes: Callable[[], Sequence[Health]]) -> None:
        self._source = source
        self._volumes = volumes
        self._lock = threading.Lock()
        self._last: _Snapshot | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing: otherwise registering would collect, before there is anything."""
        return ()

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        yield from _conditions("volume", "Published volumes", snapshot.volumes)
        yield from _conditions("mount", "Mounted file systems", [mount.condition for mount in snapshot.mounts])
        yield _changes(snapshot.totals)
        yield from _sizes(snapshot.mounts)
        yield _served(snapshot.mounts)
        yield from _sums(snapshot.totals)
        yield from _counts(snapshot.totals.counts)
        yield from _cache(snapshot.totals.cache)
        yield from _processes(snapshot)

    def _snapshot(self) -> _Snapshot:
        """Fresh, or the last one while another scrape asks: scrapes that take long do not pile up."""
        last = self._last
        if not self._lock.acquire(blocking=last is None):
            assert last is not None  # noqa: S101  (or we would have waited)
            return last
        try:
            mounts = self._source.statuses()
            self._last = _Snapshot(mounts, self._volumes(), self._source.totals())
            return self._last
        finally:
            self._lock.release()


def _conditions(what: str, noun: str, healths: Sequence[Health]) -> Iterator[Metric]:
    states = Count(health.state for health in healths)
    gauge = GaugeMetricFamily(f"weightless_{what}s", f"{noun}, by state.", labels=("state",))
    for state in get_args(State):
        gauge.add_metric((state,), states[state])
    yield gauge
    causes = Count(health.cause for health in healths)
    gauge = GaugeMetricFamily(
        f"weightless_{what}_conditions", f"{noun} that are not healthy, by reason.", labels=("state", "reason")
    )
    for state in _UNWELL:
        for reason in Reason:
            gauge.add_metric((state, reason), causes[state, reason])
    yield gauge


def _changes(totals: HolderTotals) -> Metric:
    counter = CounterMetricFamily(
        "weightless_mount_condition_changes",
        "How often mounted file systems came into a condition.",
        labels=("state", "reason"),
    )
    for (state, reason), count in sorted(totals.changes.items()):
        counter.add_metric((state, reason), count)
    return counter


def _sizes(mounts: Sequence[MountStatus]) -> Iterator[Metric]:
    for name, help_text, value in (
        ("mounts_size_bytes", "Size of what is mounted; what mounts share counts for each.", "bytes_total"),
        ("mounts_cached_bytes", "How much of that is in the cache.", "bytes_cached"),
        ("mounts_copied_bytes", "What copies of parts of native mounts take in the cache beside that.", "bytes_copied"),
        ("reads_waiting", "Reads that wait for bytes now.", "waiting"),
        ("open_files", "Files that readers have open.", "open_files"),
    ):
        yield GaugeMetricFamily(f"weightless_{name}", help_text, value=sum(getattr(mount, value) for mount in mounts))


def _sums(totals: HolderTotals) -> Iterator[Metric]:
    for name, help_text, value in (
        ("reads", "Reads that the kernel asked for.", totals.reads),
        ("reads_at_once", "Reads among them whose bytes were all in the cache.", totals.reads_at_once),
        ("read_bytes", "Bytes given to readers.", totals.bytes_read),
        ("read_wait_seconds", "Time that reads have waited for bytes, all together.", totals.waited_s),
        ("fetched_bytes", "Bytes that came from registries.", totals.bytes_fetched),
        ("fetch_requests", "Requests for bytes that were sent to registries.", totals.requests),
        ("worker_restarts", "Workers that ended without being told to.", totals.worker_restarts),
        ("fetcher_restarts", "Fetchers that ended without being told to.", totals.fetcher_restarts),
        ("keeper_restarts", "Keepers that ended without being told to.", totals.keeper_restarts),
    ):
        yield CounterMetricFamily(f"weightless_{name}", help_text, value=value)
    yield GaugeMetricFamily("weightless_fetcher_up", "Whether the fetcher is connected.", value=totals.fetcher_up)
    yield GaugeMetricFamily("weightless_keeper_up", "Whether the keeper is connected.", value=totals.keeper_up)


def _served(mounts: Sequence[MountStatus]) -> Metric:
    ways = Count(mount.served_by for mount in mounts)
    gauge = GaugeMetricFamily("weightless_mounts_served", "Mounted file systems, by what serves them.", labels=("by",))
    for way in ("fuse", "native"):
        gauge.add_metric((way,), ways[way])
    return gauge


def _counts(counts: Mapping[str, int]) -> Iterator[Metric]:
    """What the fetcher has counted. Every label is there, mostly at 0."""
    for name, help_text, label, values in (
        (
            "fetched_bytes_by_source",
            "Bytes that came from registries themselves, and from mirrors; what was thrown away included.",
            "source",
            {"registry": tally.FROM_REGISTRY, "mirror": tally.FROM_MIRROR},
        ),
        (
            "fetched_bytes_by_priority",
            "Bytes that came, by what they were fetched for.",
            "priority",
            {"demand": tally.DEMAND, "readahead": tally.READAHEAD, "background": tally.BACKGROUND},
        ),
    ):
        counter = CounterMetricFamily(f"weightless_{name}", help_text, labels=(label,))
        for value, key in values.items():
            counter.add_metric((value,), counts.get(key, 0))
        yield counter
    failures = CounterMetricFamily(
        "weightless_registry_failures", "Requests to registries and mirrors that failed.", labels=("source", "kind")
    )
    for source in ("registry", "mirror"):
        for kind in every_error():
            if count := counts.get(f"{tally.FAILURE}.{source}.{kind}"):
                failures.add_metric((source, kind), count)
    yield failures
    for name, help_text, key in (
        ("verified_blobs", "Blobs that were whole and matched their digest.", tally.VERIFIED),
        ("quarantined_blobs", "Blobs that were whole and did not match their digest.", tally.REJECTED),
        ("wrong_answers", "Answers whose bytes were not those of the digest or chunk asked for.", tally.WRONG),
        ("damaged_blocks", "Blocks that the cache's disk gave back damaged; fetched anew.", tally.DAMAGED),
        ("evicted_blobs", "Blobs that made room for others.", tally.EVICTED),
        ("evicted_bytes", "Their size.", tally.EVICTED_BYTES),
    ):
        yield CounterMetricFamily(f"weightless_{name}", help_text, value=counts.get(key, 0))


def _cache(room: CacheRoom | None) -> Iterator[Metric]:
    """Nothing before the fetcher has told, nor while its disk cannot be asked."""
    for name, help_text, field in (
        ("used_bytes", "What the cache takes on its disk.", "used_bytes"),
        ("quota_bytes", "What it may take; 0: what the disk has.", "quota_bytes"),
        ("disk_size_bytes", "Size of its disk.", "disk_bytes"),
        ("disk_free_bytes", "Free space of its disk.", "disk_free_bytes"),
    ):
        gauge = GaugeMetricFamily(f"weightless_cache_{name}", help_text, labels=())
        if room is not None:
            gauge.add_metric((), getattr(room, field))
        yield gauge


def _processes(snapshot: _Snapshot) -> Iterator[Metric]:
    roles: dict[str, set[int | None]] = {
        "worker": {mount.worker_pid for mount in snapshot.mounts},
        "fetcher": {mount.fetcher_pid for mount in snapshot.mounts},
        "keeper": {mount.keeper_pid for mount in snapshot.mounts},
    }
    count = GaugeMetricFamily("weightless_processes", "Processes that serve the mounts.", labels=("role",))
    memory = GaugeMetricFamily(
        "weightless_processes_resident_memory_bytes", "Their resident memory, shared pages included.", labels=("role",)
    )
    for role, pids in roles.items():
        sizes = [size for pid in pids if pid is not None and (size := _resident_bytes(pid)) is not None]
        count.add_metric((role,), len(sizes))
        memory.add_metric((role,), sum(sizes))
    yield count
    yield memory


def _resident_bytes(pid: int) -> int | None:
    """None for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
