"""Events on pods and the taint: what is told, how often, and that nothing waits for an API server that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.kubernetes.api import ApiServer
from csi.kubernetes.cluster import in_cluster
from csi.kubernetes.events import Event, EventReason, Pod, Told, cut, pod_of
from csi.kubernetes.presence import KubernetesSettings
from csi.kubernetes.recorder import Recorder
from csi.kubernetes.taint import TaintRemover, is_registered, removal
from csi.kubernetes.telling import Teller, pod_at
from csi.plugin import NodePlugin
from csi.volumes import VolumeRecord
from fuse.errors import Conflict, Forbidden, InProgress, InvalidConfig, InvalidRequest, NotFound, Unavailable
from fuse.filesystem.table import View
from fuse.mounting.status import Health
from tests.csi.fakes import PASSWORD, PRIVATE, REFERENCE, FakeManager
from tests.csi.harness import Kubelet, Place
from tests.support.apiserver import TOKEN, FakeApiServer
from tests.support.waiting import until

UID = "11111111-2222-3333-4444-555555555555"
POD = Pod("default", "reader", UID)
TAINT = "csi.weightless.dev/agent-not-ready"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApiServer]:
    with FakeApiServer(tmp_path) as server:
        yield server


def event(
    cause: str = "x", at: float = 1e9, note: str = "note", reason: EventReason = EventReason.REFUSED, pod: Pod = POD
) -> Event:
    return Event(pod=pod, volume_id="v", reason=reason, cause=cause, note=note, at=at)


@dataclass
class Counts:
    sent: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def event_sent(self, reason: str) -> None:
        self.sent.append(reason)

    def event_dropped(self, cause: str) -> None:
        self.dropped.append(cause)


# ---- values ----


@pytest.mark.parametrize("name", ["", "../secrets", "a/b", "A", "a b", "-a", "a" * 254, "a\n"])
def test_names_that_no_pod_has_make_no_url(name: str) -> None:
    """Namespace, name and uid may come from the author of a pod, and become parts of a path."""
    assert pod_of("default", name, UID) is None
    assert pod_of(name, "reader", UID) is None
    assert pod_of("default", "reader", name) is None


def test_the_pod_of_a_target() -> None:
    """Its uid is in kubelet's path; a target of no pod has none."""
    inside = f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/model/mount"
    assert pod_at(inside, "default/reader") == POD
    assert pod_at(inside, "") is None
    assert pod_at("/var/lib/kubelet/plugins/kubernetes.io/csi/x", "default/reader") is None


def test_the_same_is_told_once_in_ten_minutes_and_counted() -> None:
    """Then as a series of the same event; in other words, or of another cause, as an event of its own."""
    told = Told()
    first = told.admit(event(at=0))
    assert first is not None
    assert not first.again
    assert told.admit(event(at=599)) is None
    again = told.admit(event(at=601))
    assert again is not None
    assert (again.name, again.count, again.again) == (first.name, 3, True)
    other = told.admit(event(at=602, cause="y"))
    assert other is not None
    assert not other.again
    words = told.admit(event(at=1300, note="other words"))
    assert words is not None
    assert not words.again


def test_what_was_told_is_remembered_of_so_many_only() -> None:
    """A thousand pods that come and go do not fill the memory."""
    told = Told(most=2)
    for number in range(3):
        told.admit(event(str(number), at=0))
    assert told.admit(event("2", at=1)) is None
    assert told.admit(event("0", at=1)) is not None


def test_a_note_is_cut_at_the_bytes_that_an_event_may_have() -> None:
    """Not in the middle of a character."""
    assert cut("é" * 512) == "é" * 512
    assert len(cut("é" * 600).encode()) <= 1024
    assert cut("é" * 600).endswith("é…")


# ---- the API server ----


def test_where_a_pod_finds_its_api_server(tmp_path: Path) -> None:
    """By what kubelet puts there; without one part of it, nowhere."""
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    (tmp_path / "token").write_text("x")
    assert in_cluster(environ, tmp_path) is None
    (tmp_path / "ca.crt").write_text("x")
    found = in_cluster(environ, tmp_path)
    assert found is not None
    assert found.url == "https://[fd00::1]:443"
    assert in_cluster({}, tmp_path) is None


def test_a_token_that_was_exchanged_is_used_at_once(api: FakeApiServer) -> None:
    """Kubelet writes a new one every hour; the old one is refused."""
    with closing(ApiServer(api.cluster)) as server:
        server.get("/api/v1/nodes/node-a")
        api.accepted = {"second"}
        api.token_file.write_text("second\n")
        assert server.get("/api/v1/nodes/node-a")["metadata"]["name"] == "node-a"


def test_no_proxy_is_asked_for_the_clusters_own_address(api: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's are for registries."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with closing(ApiServer(api.cluster)) as server:
        server.get("/api/v1/nodes/node-a")


@pytest.mark.parametrize(
    ("fault", "error"), [(0, Unavailable), (503, Unavailable), (429, Unavailable), (403, Forbidden), (404, NotFound),
                         (409, Conflict), (422, InvalidRequest), (302, InvalidRequest)],
)  # fmt: skip
def test_what_the_api_server_answers_is_an_error_of_ours(api: FakeApiServer, fault: int, error: type) -> None:
    """Short, in one line, and without the token; the next request is served."""
    with closing(ApiServer(api.cluster)) as server:
        api.faults.append(fault)
        with pytest.raises(error) as caught:
            server.get("/api/v1/nodes/node-a")
        assert TOKEN not in str(caught.value)
        assert str(caught.value).isprintable()
        server.get("/api/v1/nodes/node-a")


def test_another_server_than_the_clusters_gets_no_token(api: FakeApiServer, tmp_path: Path) -> None:
    """Its certificate must be of the cluster's authority; a file that holds none is a fault of configuration."""
    other = tmp_path / "other"
    other.mkdir()
    stranger = FakeApiServer(other)
    with stranger, closing(ApiServer(replace(stranger.cluster, ca_file=api.cluster.ca_file))) as server:
        with pytest.raises(Unavailable):
            server.get("/api/v1/nodes/node-a")
        assert stranger.requests == []
    (other / "ca.crt").write_text("no certificate")
    with closing(ApiServer(stranger.cluster)) as server, pytest.raises(InvalidConfig):
        server.get("/")


# ---- the recorder ----


def recorder(api: FakeApiServer, counts: Counts, **values: Any) -> Recorder:
    values = {"first_pause_s": 0.01, "clock": lambda: 1e9} | values
    return Recorder(ApiServer(api.cluster), controller="c", instance="node-a", observer=counts, **values)


def test_an_event_is_what_kubernetes_takes(api: FakeApiServer) -> None:
    """Regarding the pod by uid, with reason, type and time; told twice, it is sent once."""
    counts = Counts()
    with closing(recorder(api, counts)) as telling:
        telling.tell(event(note="why"))
        telling.tell(event(note="why"))
        telling.tell(event(reason=EventReason.RESOLVED))
        until(lambda: len(counts.sent) == 2, "events are sent")
    first, second = api.events.values()
    assert first["regarding"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "reader", "uid": UID,
    }  # fmt: skip
    assert (first["type"], first["reason"], first["note"]) == ("Warning", "ModelRefused", "why")
    assert second["type"] == "Normal"
    assert first["reportingInstance"] == "node-a"
    assert first["eventTime"] == "2001-09-09T01:46:40.000000Z"
    assert first["metadata"]["name"].startswith("reader.")


def test_a_repetition_is_a_series_and_a_new_event_once_the_first_is_gone(api: FakeApiServer) -> None:
    """The API server keeps events for an hour."""
    counts = Counts()
    with closing(recorder(api, counts)) as telling:
        telling.tell(event())
        telling.tell(event(at=1e9 + 700))
        until(lambda: len(counts.sent) == 2, "events are sent")
        (only,) = api.events.values()
        assert only["series"]["count"] == 2
        api.events.clear()
        telling.tell(event(at=1e9 + 1400))
        until(lambda: len(counts.sent) == 3, "events are sent")
    (only,) = api.events.values()
    assert "series" not in only


def test_an_event_whose_answer_was_lost_is_told_once(api: FakeApiServer) -> None:
    """It is made, the connection ends, and it is tried again: the API server has it already."""
    counts = Counts()
    api.faults.append(FakeApiServer.LOSE_ANSWER)
    with closing(recorder(api, counts)) as telling:
        telling.tell(event())
        until(lambda: counts.sent, "it is sent")
    assert len(api.events) == 1
    assert counts.dropped == []


def test_events_outlive_an_outage_of_the_api_server(api: FakeApiServer) -> None:
    """Nothing is lost that has room, nor told twice when only an answer was lost."""
    counts = Counts()
    api.faults.extend([503, 0, 429])
    with closing(recorder(api, counts)) as telling:
        telling.tell(event("a"))
        telling.tell(event("b"))
        until(lambda: len(counts.sent) == 2, "events are sent")
    assert len(api.events) == 2
    assert counts.dropped == []


def test_what_finds_no_room_or_is_refused_or_old_is_dropped_and_counted(api: FakeApiServer) -> None:
    """And is told when it happens again."""
    counts = Counts()
    api.lock.acquire()  # it does not answer
    try:
        telling = recorder(api, counts, most_waiting=2)
        for cause in "abcd":
            telling.tell(event(cause))
        assert counts.dropped == ["queue_full"] * 2
        api.faults.append(403)
    finally:
        api.lock.release()
    with closing(telling):
        until(lambda: len(counts.sent) == 1, "the second is sent")
        assert counts.dropped == ["queue_full"] * 2 + ["refused"]
        for cause, at in (("a", 1e9), ("old", 1e9 - 601), ("d", 1e9)):
            telling.tell(event(cause, at=at))
            until(lambda: not telling._waiting, "it is dealt with")
    assert len(counts.sent) == 3
    assert counts.dropped[3:] == ["too_old"]


def test_nobody_waits_for_an_api_server_that_hangs(api: FakeApiServer) -> None:
    """Neither who tells, nor for long who ends the plugin."""
    counts = Counts()
    with api.lock:
        telling = recorder(api, counts)
        telling.tell(event())
        until(lambda: telling._waiting, "it is being sent")
        telling.close()
        telling.tell(event("later"))
    assert counts.sent == []


# ---- what is told ----


def record(**values: Any) -> VolumeRecord:
    fields = {
        "name": "n", "volume_id": "csi-1", "stage": "published", "reference": REFERENCE, "pinned": f"{REFERENCE}@sha256:1",
        "target": f"/k/pods/{UID}/volumes/kubernetes.io~csi/model/mount", "view": View(), "prefetch": "full",
        "parameters": "", "identity": "i", "bytes_total": 16_060_000_000, "files": 5, "pod": "default/reader",
    }  # fmt: skip
    return VolumeRecord(**(fields | values))


class Ear:
    def __init__(self) -> None:
        self.now = 1000.0
        self.heard: list[Event] = []
        self.teller = Teller(self.heard.append, lambda: self.now)

    def look(self, health: Health) -> list[tuple[str, str]]:
        self.heard.clear()
        self.teller.look([(record(), health)])
        return [(one.reason.value, one.note) for one in self.heard]


def test_a_publish_is_told_with_its_digest() -> None:
    """So that a pod's owner knows which model it reads."""
    ear = Ear()
    ear.teller.published(record(), "native")
    (one,) = ear.heard
    assert (one.reason, one.pod, one.cause) == ("ModelResolved", POD, "sha256:1")
    assert one.note == f"volume model: {REFERENCE} is sha256:1 (16.1 GB in 5 files), served from the node's cache"


def test_a_refusal_is_told_unless_another_call_has_more_to_tell() -> None:
    """What may succeed later has another name than what will not; texts of strangers are one line."""
    ear = Ear()
    context = {"csi.storage.k8s.io/pod.namespace": "default", "csi.storage.k8s.io/pod.name": "reader"}

    def refused(error: Any) -> list[tuple[str, str]]:
        ear.heard.clear()
        ear.teller.refused("v", record().target, context, error, f"{error}")
        return [(one.reason.value, one.note) for one in ear.heard]

    assert refused(NotFound("not\x1b[31m\nfound", where="r", fix="ask")) == [
        ("ModelRefused", "r: not [31m found (ask)")
    ]
    assert [reason for reason, _ in refused(Unavailable("away"))] == ["ModelUnavailable"]
    assert refused(InProgress("wait")) == []
    ear.teller.refused("v", "/k/plugins/kubernetes.io/csi/x", context, NotFound("x"), "x")
    assert ear.heard == []


def test_conditions_are_told_when_they_last() -> None:
    """Broken at once; degraded after ten seconds; healed only where something was told before."""
    ear = Ear()
    outage = Health(state="degraded", reason="away", reason_code="registry_unavailable", since=995.0)
    assert ear.look(Health()) == []
    assert ear.look(outage) == []
    assert ear.look(Health()) == []
    ear.now = 1006.0
    ((reason, note),) = ear.look(outage)
    assert reason == "ModelDegraded"
    assert "registry_unavailable: away; reads wait" in note
    assert ear.look(outage) == []
    ((reason, _),) = ear.look(Health(state="broken", reason="bad", reason_code="corrupt_blob", since=1006.0))
    assert reason == "ModelBroken"
    ((reason, note),) = ear.look(Health())
    assert (reason, note) == ("ModelHealed", "volume model: the volume can be read")
    assert ear.look(Health()) == []


# ---- the taint ----


def taint(key: str, effect: str = "NoSchedule") -> dict[str, str]:
    return {"key": key, "effect": effect}


def test_only_our_taint_is_in_the_patch() -> None:
    """Each removal tests first what it removes, from the end of the list."""
    node = {"spec": {"taints": [taint(TAINT), taint("other"), taint(TAINT, "NoExecute")]}}
    assert [(one["op"], one["path"]) for one in removal(node, TAINT)] == [
        ("test", "/spec/taints/2"), ("remove", "/spec/taints/2"), ("test", "/spec/taints/0"), ("remove", "/spec/taints/0"),
    ]  # fmt: skip
    for nothing in ({}, {"spec": None}, {"spec": {"taints": None}}, {"spec": {"taints": ["x", {}]}}):
        assert removal(nothing, TAINT) == []  # type: ignore[arg-type]
    assert not is_registered({"spec": {"drivers": [{"name": "other"}]}})


def test_the_taint_goes_once_kubelet_knows_the_driver_and_no_other(api: FakeApiServer) -> None:
    """Also while somebody else changes the list: their taint stays, wherever they put it."""
    api.node["spec"]["taints"] = [taint("other"), taint(TAINT), taint(TAINT, "NoExecute")]

    def somebody_adds() -> None:
        api.node["spec"]["taints"].insert(0, taint("new"))

    api.before_patch.append(somebody_adds)
    api.faults.extend([403, 503])
    with closing(TaintRemover(ApiServer(api.cluster), node="node-a", key=TAINT, first_pause_s=0.01)) as remover:
        until(lambda: len(api.requests) > 4, "it asks for the registration")
        assert len(api.node["spec"]["taints"]) == 3
        api.drivers.append("csi.weightless.dev")
        until(lambda: not remover._thread.is_alive(), "it is done")
    assert api.node["spec"]["taints"] == [taint("new"), taint("other")]


# ---- the plugin ----


@pytest.mark.kernel
def test_a_plugin_in_a_cluster_tells_the_owners_of_pods(
    place: Place, manager: FakeManager, api: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolved, refused, broken and healed stand at the pod; no secret does; the node loses its taint."""
    monkeypatch.setattr("csi.kubernetes.presence.LOOK_S", 0.02)
    api.node["spec"]["taints"] = [taint(TAINT)]
    api.drivers.append("csi.weightless.dev")
    settings = replace(place.settings(), kubernetes=KubernetesSettings(cluster=api.cluster, remove_taint=TAINT))
    plugin = NodePlugin(settings, manager)
    plugin.start()
    try:
        with Kubelet(place.socket) as kubelet:
            target = place.target()
            kubelet.publish(target)
            kubelet.publish(target)
            wrong = {"username": "bob", "password": f"{PASSWORD}-wrong"}
            with pytest.raises(grpc.RpcError):
                kubelet.publish(place.target(volume="b"), volume_id="b", reference=PRIVATE, secrets=wrong)
            until(lambda: len(api.told()) == 2, "both are told")
            manager.condition = Health(state="broken", reason="wrong", reason_code="corrupt_blob", since=1.0)
            until(lambda: len(api.told()) == 3, "that it is broken is told")
            manager.condition = Health()
            until(lambda: len(api.told()) == 4, "that it is healed is told")
            until(lambda: api.node["spec"]["taints"] == [], "the taint goes")
            kubelet.unpublish(target)
    finally:
        plugin.stop()
    told = dict(api.told())
    assert list(told) == ["ModelResolved", "ModelRefused", "ModelBroken", "ModelHealed"]
    assert "sha256:" in told["ModelResolved"]
    assert PASSWORD not in repr(api.events)
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"events", "conditions", "taint"})


@pytest.mark.kernel
def test_a_publish_does_not_feel_an_api_server_that_hangs(
    place: Place, manager: FakeManager, api: FakeApiServer
) -> None:
    """It is answered while no event can be sent."""
    settings = replace(place.settings(), kubernetes=KubernetesSettings(cluster=api.cluster))
    plugin = NodePlugin(settings, manager)
    with api.lock:
        plugin.start()
        try:
            with Kubelet(place.socket) as kubelet:
                kubelet.publish(place.target())
                kubelet.unpublish(place.target())
        finally:
            plugin.stop()
