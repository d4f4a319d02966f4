"""What Prometheus gets: the endpoint, what it counts, and that nothing piles up behind a slow answer."""

from __future__ import annotations

import http.client
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from csi.exposition import Exposition, parse_address
from csi.metrics import Metrics
from csi.plugin import NodePlugin
from fuse.errors import InvalidConfig
from fuse.fetch.tally import CacheRoom
from fuse.mounting.reasons import Reason
from fuse.mounting.status import Health, HolderTotals, MountStatus
from tests.csi.fakes import PASSWORD, PRIVATE, FakeManager
from tests.csi.harness import Kubelet, Place, publish_request
from tests.support.metrics import Scrape, scrape
from tests.support.ports import free_port


class Source:
    def __init__(self) -> None:
        self.mounts: list[MountStatus] = []
        self.asked = threading.Semaphore(0)
        self.answer = threading.Event()
        self.answer.set()

    def statuses(self) -> list[MountStatus]:
        self.asked.release()
        assert self.answer.wait(20)
        return self.mounts

    def totals(self) -> HolderTotals:
        return HolderTotals(
            reads=7,
            reads_at_once=5,
            waited_s=1.5,
            keeper_up=False,
            changes={("degraded", "cache_full"): 3},
            counts={"bytes_from_mirror": 4, "failures.mirror.unavailable": 2, "failures.mirror.canary": 1},
            cache=CacheRoom(used_bytes=1, quota_bytes=0, disk_bytes=9, disk_free_bytes=8),
        )


def mount(condition: Health, **values: int) -> MountStatus:
    return MountStatus(
        id="x",
        mountpoint="/canary/path",
        reference="canary.example.com/a/b:v1",
        digest="sha256:canary",
        worker_pid=None,
        keeper_pid=None,
        fetcher_pid=None,
        holder_pid=1,
        bytes_cached=values.get("bytes_cached", 0),
        bytes_total=values.get("bytes_total", 0),
        waiting=values.get("waiting", 0),
        condition=condition,
    )


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9808", "127.0.0.1", 9808),
        (":0", "", 0),
        ("[::1]:80", "::1", 80),
        ("node-1.example:80", "node-1.example", 80),
    ],
)
def test_forms_of_the_address(text: str, host: str, port: int) -> None:
    """With a host, without, IPv6 in brackets."""
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["9808", "localhost", "a:b", "::1:80", "127.0.0.1:70000", "http://a:80", ":-1", "a b:80"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Before anything is started, with the option's name."""
    with pytest.raises(InvalidConfig, match="--metrics-address"):
        Exposition(text, CollectorRegistry())


def test_an_address_that_cannot_be_had_is_refused(place: Place, manager: FakeManager) -> None:
    """A port that is taken: the plugin does not start, and has mounted nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = replace(place.settings(), metrics_address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(InvalidConfig, match="cannot be listened at"):
            NodePlugin(settings, manager).start()
    assert not manager.started


def served(metrics: Metrics) -> tuple[Exposition, int]:
    port = free_port()
    exposition = Exposition(f"127.0.0.1:{port}", metrics.registry)
    exposition.bind()
    exposition.serve()
    return exposition, port


def test_states_and_reasons_are_counted() -> None:
    """Every state and every reason is there, at zero where there is none; sizes add up."""
    source = Source()
    cause = Health(state="degraded", reason="canary.example.com is away", reason_code="registry_unavailable", since=1)
    unknown = Health(state="broken", reason_code="of-a-newer-version")
    source.mounts = [
        mount(Health(), bytes_total=10, bytes_cached=5),
        mount(cause, bytes_total=30, bytes_cached=6, waiting=2),
        mount(unknown),
    ]
    metrics = Metrics(source, lambda: [Health(), cause])
    exposition, port = served(metrics)
    try:
        found = scrape(port)
    finally:
        exposition.close()
    assert found.of("weightless_mounts", "state") == {"healthy": 1, "degraded": 1, "broken": 1}
    assert found.of("weightless_volumes", "state") == {"healthy": 1, "degraded": 1, "broken": 0}
    assert found.value("weightless_mount_conditions", state="degraded", reason="registry_unavailable") == 1
    assert found.value("weightless_mount_conditions", state="broken", reason="unknown") == 1
    assert found.value("weightless_volume_conditions", state="broken", reason="corrupt_blob") == 0
    assert len(found.samples("weightless_mount_conditions")) == 2 * len(Reason)
    assert found.value("weightless_mounts_size_bytes") == 40
    assert found.value("weightless_mounts_cached_bytes") == 11
    assert found.value("weightless_reads_waiting") == 2
    assert found.value("weightless_reads_total") == 7
    assert found.value("weightless_read_wait_seconds_total") == 1.5
    assert found.value("weightless_keeper_up") == 0
    assert found.value("weightless_reads_at_once_total") == 5
    assert found.of("weightless_mounts_served", "by") == {"fuse": 3, "native": 0}
    assert found.of("weightless_fetched_bytes_by_source_total", "source") == {"registry": 0, "mirror": 4}
    (failures,) = found.samples("weightless_registry_failures_total")
    assert (failures.labels, failures.value) == ({"source": "mirror", "kind": "unavailable"}, 2)
    assert (found.value("weightless_cache_disk_size_bytes"), found.value("weightless_cache_disk_free_bytes")) == (9, 8)
    assert found.value("weightless_mount_condition_changes_total", state="degraded", reason="cache_full") == 3
    assert "canary" not in found.text


def test_scrapes_do_not_pile_up_behind_a_slow_one() -> None:
    """While one scrape asks the processes, the others get the last answer at once."""
    source = Source()
    metrics = Metrics(source, list)
    exposition, port = served(metrics)
    try:
        scrape(port)
        assert source.asked.acquire(timeout=5)
        source.answer.clear()
        with ThreadPoolExecutor(4) as pool:
            slow = pool.submit(scrape, port)
            assert source.asked.acquire(timeout=5)
            assert [scrape(port).value("weightless_reads_total") for _ in range(3)] == [7, 7, 7]
            assert not slow.done()
            source.answer.set()
            assert slow.result(10).value("weightless_reads_total") == 7
        assert not source.asked.acquire(blocking=False)
    finally:
        exposition.close()


def test_a_scrape_that_fails_is_an_error_of_http() -> None:
    """Prometheus then says `up == 0`, and the next one works."""
    source = Source()

    def volumes() -> list[Health]:
        raise RuntimeError("inside")

    metrics = Metrics(source, volumes)
    exposition, port = served(metrics)
    try:
        for _ in range(2):
            status, text = get(port, "/metrics")
            assert status == 500
            assert "inside" not in text
    finally:
        exposition.close()


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_many_idle_connections_take_few_threads() -> None:
    """Who connects and says nothing cannot have more of the plugin than eight threads; a scrape goes on when they have gone."""
    metrics = Metrics(Source(), list)
    exposition, port = served(metrics)
    try:
        before = threading.active_count()
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        refused = [sock for sock in idle[8:] if sock.recv(1) == b""]
        assert len(refused) == 22
        assert threading.active_count() - before <= 8
        for sock in idle:
            sock.close()
        assert scrape_soon(port).value("weightless_reads_total") == 7
    finally:
        exposition.close()


def scrape_soon(port: int) -> Scrape:
    from tests.support.waiting import until

    def found() -> Scrape | None:
        try:
            return scrape(port)
        except (OSError, http.client.HTTPException):
            return None

    return until(found, "a scrape is answered")  # type: ignore[return-value]


@pytest.mark.kernel
def test_calls_are_counted_by_method_and_code(place: Place, manager: FakeManager) -> None:
    """A publish, one that is refused, a method that is not offered; the endpoint ends with the plugin, and shows no secret."""
    port = free_port()
    plugin = NodePlugin(replace(place.settings(), metrics_address=f"127.0.0.1:{port}"), manager)
    plugin.start()
    try:
        with Kubelet(place.socket) as kubelet:
            target = place.target()
            secrets = {"username": "bob", "password": PASSWORD}
            kubelet.publish(target, reference=PRIVATE, secrets=secrets)
            refused = publish_request(place.target(volume="b"), volume_id="b", reference=PRIVATE)
            kubelet.node.NodePublishVolume.future(refused, timeout=10).exception()
            found = scrape(port)
            assert found.of("weightless_csi_requests_total", "code", method="NodePublishVolume") == {
                "OK": 1,
                "UNAUTHENTICATED": 1,
            }
            assert found.value("weightless_csi_request_duration_seconds_count", method="NodePublishVolume") == 2
            assert found.of("weightless_volumes", "state") == {"healthy": 1, "degraded": 0, "broken": 0}
            for hidden in (PASSWORD, "bob", "registry.example.com", str(place.root)):
                assert hidden not in found.text
            manager.condition = Health(state="degraded", reason="w", reason_code="cache_full", since=1.0)
            found = scrape(port)
            assert found.value("weightless_volume_conditions", state="degraded", reason="cache_full") == 1
            kubelet.unpublish(target)
        assert get(port, "/")[0] == 404
    finally:
        plugin.stop()
    with pytest.raises(ConnectionRefusedError):
        get(port, "/metrics")


def test_the_answer_is_what_the_parser_of_prometheus_takes() -> None:
    """Every family has its type and help."""
    metrics = Metrics(Source(), list)
    exposition, port = served(metrics)
    try:
        families = list(text_string_to_metric_families(get(port, "/metrics")[1]))
    finally:
        exposition.close()
    assert all(family.documentation and family.type != "unknown" for family in families)
