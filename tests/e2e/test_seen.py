"""What an operator sees of real faults: the volume's condition, metrics, `weightless status` and the log agree."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fuse.mounting.reasons import Reason
from tests.support.cli import CommandLine
from tests.support.leaks import Sandbox
from tests.support.metrics import Scrape, scrape
from tests.support.models import digest_tree
from tests.support.node import Node
from tests.support.ports import free_port
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LARGE = "weights/model-00001-of-00003.safetensors"
_SINCE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A running plugin with one published volume, from all sides."""

    node: Node
    cli: CommandLine
    target: Path
    port: int

    def scrape(self) -> Scrape:
        return scrape(self.port)

    def condition(self) -> Any:
        return self.node.stats("csi-1", self.target).volume_condition

    def status(self) -> dict[str, Any]:
        (status,) = self.cli.status()
        return status

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Lines of the plugin's log with this event."""
        lines = [line for line in self.node.log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def wait_condition(self, state: str, reason: Reason, *, logged: tuple[Reason, ...] = ()) -> str:
        """Waits until all four tell of it; the condition's message. `logged`: what else the log may say, which tells little of
        what changes often."""
        begins = rf"{state} since {_SINCE}: {reason}: "
        until(lambda: re.match(begins, self.condition().message), f"the condition says {state} {reason}")
        until(
            lambda: self.scrape().value("weightless_mount_conditions", state=state, reason=reason) == 1,
            "the metric of mounts says so",
        )
        found = self.scrape()
        assert found.value("weightless_volume_conditions", state=state, reason=reason) == 1
        assert found.value("weightless_mounts", state=state) == 1
        told = self.status()["condition"]
        assert (told["state"], told["reason_code"]) == (state, reason)
        assert re.fullmatch(_SINCE, told["since_iso"])
        table = self.cli.do("status").out
        assert f"{reason}: " in table
        assert " ago " in table
        line = until(lambda: self.lines(f"mount_{state}"), f"the log says mount_{state}")[-1]
        assert line["reason"] in (reason, *logged)
        assert re.fullmatch(_SINCE, line["since"])
        message = self.condition().message
        assert self.condition().abnormal
        assert message.isprintable()
        return str(message)

    def wait_healthy(self) -> None:
        until(lambda: self.scrape().value("weightless_mounts", state="healthy") == 1, "the metric says healthy")
        until(lambda: not self.condition().abnormal, "the condition is normal")


@pytest.fixture
def seen(sandbox: Sandbox, named: str, reference: str) -> Iterator[Seen]:
    port = free_port()
    with Node(sandbox, "--certs-dir", named, metrics_address=f"127.0.0.1:{port}") as node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": reference, "prefetch": "none"})
        yield Seen(node=node, cli=CommandLine(sandbox), target=target, port=port)
        node.unpublish("csi-1", target)
        assert [] == node.leftovers()


def head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def test_a_registry_that_is_away_is_seen_and_healed(seen: Seen, registry: FaultyRegistry, small_model: Path) -> None:
    """Degraded with its reason while a read waits; healthy again with a duration; the bytes are right."""
    registry.script("blob", "503", forever=True)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(head, seen.target / LARGE, 100_000)
        message = seen.wait_condition("degraded", Reason.REGISTRY_UNAVAILABLE)
        assert message.endswith("; reads wait and go on by themselves")
        assert registry.host in message
        found = seen.scrape()
        assert found.value("weightless_reads_waiting") >= 1
        assert registry.host not in found.text
        registry.clear_scripts()
        assert reading.result(30) == head(small_model / LARGE, 100_000)
    seen.wait_healthy()
    (line,) = until(lambda: seen.lines("mount_healed"), "the log says that it is healed")
    assert line["reason"] == Reason.REGISTRY_UNAVAILABLE
    assert line["duration_s"] > 0
    found = seen.scrape()
    assert found.value("weightless_read_wait_seconds_total") > 0
    assert found.value("weightless_fetched_bytes_total") > 0
    assert found.value("weightless_mount_condition_changes_total", state="degraded", reason=Reason.REGISTRY_UNAVAILABLE)
    assert found.value("weightless_registry_failures_total", source="registry", kind="unavailable") > 0
    assert found.value("weightless_fetched_bytes_by_source_total", source="registry") > 0
    assert found.value("weightless_fetched_bytes_by_priority_total", priority="demand") > 0
    assert found.value("weightless_reads_at_once_total") < found.value("weightless_reads_total")
    until(lambda: seen.scrape().value("weightless_cache_used_bytes") > 0, "what is in the cache is counted")


def test_a_registry_that_refuses_is_broken(seen: Seen, registry: FaultyRegistry) -> None:
    """403 for the blob: the read fails, and the condition says who refuses."""
    registry.script("blob", "403", forever=True)
    with pytest.raises(OSError):
        head(seen.target / LARGE, 1000)
    assert "some reads fail" in seen.wait_condition("broken", Reason.REGISTRY_REFUSED)


def test_a_corrupt_blob_is_broken(seen: Seen, registry: FaultyRegistry) -> None:
    """Wrong bytes wherever they come from: EIO, and all say which reason."""
    registry.script("blob", "corrupt", forever=True)
    with pytest.raises(OSError):
        (seen.target / "tokenizer/merges.txt").read_bytes()
    seen.wait_condition("broken", Reason.CORRUPT_BLOB)
    assert seen.scrape().value("weightless_wrong_answers_total") > 0


def test_a_worker_that_keeps_dying_is_seen(seen: Seen) -> None:
    """Killed six times in a row: a crash loop, which counts its deaths, and is over when a worker has served for a while."""
    for _ in range(6):
        pid = until(lambda: seen.status()["worker_pid"], "there is a worker")
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: seen.status()["worker_pid"] != pid, "its death is noticed")  # type: ignore[misc]
    message = seen.wait_condition("degraded", Reason.WORKER_CRASH_LOOP, logged=(Reason.WORKER_REPLACED,))
    assert "in a row" in message
    assert seen.scrape().value("weightless_worker_restarts_total") == 6
    assert seen.status()["worker_restarts"]["count"] == 6
    seen.wait_healthy()


def test_the_fetcher_is_there_before_the_first_pod(sandbox: Sandbox, named: str, reference: str) -> None:
    """It takes most of a second to start. It is the one that serves, and goes with a plugin that nobody asked for anything."""
    with Node(sandbox, "--certs-dir", named) as node:
        until(lambda: fetchers(sandbox), "it runs")
        before = fetchers(sandbox)
        node.publish("csi-1", node.target("pod-1"), {"reference": reference})
        assert before == fetchers(sandbox) == {CommandLine(sandbox).status()[0]["fetcher_pid"]}
        node.unpublish("csi-1", node.target("pod-1"))
    node.start()
    until(lambda: fetchers(sandbox), "it runs")
    node.stop()
    assert set() == fetchers(sandbox)


def fetchers(sandbox: Sandbox) -> set[int]:
    return {pid for pid, command in sandbox.processes().items() if "fuse.fetch" in command}


def test_counters_outlive_workers_and_fetcher(seen: Seen, small_model: Path) -> None:
    """What was read and fetched before a death is not taken back by it, and what comes after is added."""
    names = ("weightless_reads_total", "weightless_read_bytes_total", "weightless_fetched_bytes_total")
    names += ("weightless_fetch_requests_total",)
    assert (seen.target / "tokenizer/merges.txt").read_bytes() == (small_model / "tokenizer/merges.txt").read_bytes()
    before = seen.scrape()
    for role in ("worker_pid", "fetcher_pid"):
        pid = seen.status()[role]
        os.kill(pid, signal.SIGKILL)
        until(lambda role=role, pid=pid: seen.status()[role] not in (None, pid), f"another {role}")  # type: ignore[misc]
        after = seen.scrape()
        assert all(after.value(name) >= before.value(name) > 0 for name in names)
    assert digest_tree(small_model) == digest_tree(seen.target)
    until(
        lambda: all(seen.scrape().value(name) > before.value(name) for name in names), "what was read then is counted"
    )
    found = seen.scrape()
    assert found.value("weightless_fetcher_restarts_total") == 1
    assert found.value("weightless_fetcher_up") == 1
    assert found.value("weightless_processes", role="worker") == 1
    assert found.value("weightless_processes_resident_memory_bytes", role="fetcher") > 0


def test_processes_that_hang_hold_up_no_scrape(seen: Seen) -> None:
    """Worker and fetcher stopped: scrapes are answered; a fetcher that says nothing is a reason of its own."""
    status = seen.status()
    pids = (status["worker_pid"], status["fetcher_pid"])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: seen.scrape(), range(8)))
        assert all(one.value("weightless_mounts_size_bytes") > 0 for one in found)
        seen.wait_condition("degraded", Reason.FETCHER_WEDGED)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    seen.wait_healthy()


def test_a_keeper_that_cannot_be_had_is_seen(seen: Seen, sandbox: Sandbox) -> None:
    """Nothing waits, and still somebody should look: a restart of the plugin would end the mount."""
    keeper = sandbox.run / "node.keeper"
    keeper.unlink()
    keeper.mkdir()
    os.kill(seen.status()["keeper_pid"], signal.SIGKILL)
    assert "reads go on" in seen.wait_condition("degraded", Reason.KEEPER_DOWN)
    found = seen.scrape()
    assert (found.value("weightless_keeper_up"), found.value("weightless_keeper_restarts_total")) == (0, 1)
    keeper.rmdir()
    seen.wait_healthy()


def test_every_metric_is_documented_and_every_documented_one_is_there(seen: Seen) -> None:
    """docs/metrics.md names what a running plugin exports, with its type and labels, and nothing else."""
    head(seen.target / LARGE, 10)
    pid = seen.status()["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exported: dict[str, tuple[str, set[str]]] = {}
    for family in seen.scrape().families:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        # A counter that nothing was counted with yet has no labels to be seen.
        exported[name] = (family.type, labels or documented.get(name, ("", set()))[1])
    assert exported == documented
