"""What callers are told: codes, messages, log lines; and what they never are."""

from __future__ import annotations

import base64
import json
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from csi import facts, interceptors
from csi.interceptors import guarded
from csi.pb import csi_pb2 as pb
from csi.redaction import clean, secret_values, visible
from csi.status import CODES, code_of
from fuse import tracing
from fuse.errors import Conflict, NotFound, WeightlessError, every_error
from tests.csi.fakes import PASSWORD, PRIVATE, FakeManager
from tests.csi.harness import Place, publish_request, running

CANARY = "canary-8c1f"
NON_FINAL = {"CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"}


def test_every_error_has_a_code_of_its_own_line() -> None:
    """No class of fuse.errors is left to its base by mistake."""
    assert {cls for cls in every_error().values() if cls.__module__ == "fuse.errors"} <= set(CODES)


def test_codes_agree_with_kubelets_reading() -> None:
    """What may succeed later is "perhaps mounted" for kubelet; all else is final."""
    for cls in CODES:
        assert (CODES[cls].name in NON_FINAL) == cls.temporary, cls


def test_a_class_that_the_table_does_not_know_has_its_bases_code() -> None:
    """A subclass elsewhere is not an internal error."""

    class Special(NotFound):
        kind = "special_for_test"

    assert code_of(Special("x")) is grpc.StatusCode.NOT_FOUND


class Context:
    """As much of a gRPC context as the guard needs."""

    def __init__(self) -> None:
        self.aborted: tuple[grpc.StatusCode, str] | None = None

    def time_remaining(self) -> float:
        return 12.0

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.aborted = (code, details)


def outcome(error: BaseException, request: Any) -> tuple[grpc.StatusCode, str, list[Any]]:
    def handler(_request: object, _context: object) -> None:
        raise error

    context = Context()
    with structlog.testing.capture_logs() as logs:
        guarded("NodePublishVolume", handler)(request, context)  # type: ignore[arg-type]
    assert context.aborted is not None
    return *context.aborted, logs


def secret_request() -> pb.NodePublishVolumeRequest:
    config = {
        "auths": {
            "a.example.com": {"auth": base64.b64encode(f"bob:{CANARY}-auth".encode()).decode()},
            "b.example.com": {"username": "bob", "password": f"{CANARY}-password", "identitytoken": f"{CANARY}-token"},
        }
    }
    request = publish_request(
        "/t",
        secrets={"username": "bob", "password": CANARY, ".dockerconfigjson": json.dumps(config)},
        attributes={
            "csi.storage.k8s.io/serviceAccount.tokens": json.dumps({"aud": {"token": f"{CANARY}-jwt"}}),
            "csi.storage.k8s.io/pod.uid": "7",
        },
        reference=f"bob:{CANARY}@registry.example.com/a/b",
    )
    request.volume_capability.mount.mount_flags.append(f"key={CANARY}")
    return request


@pytest.mark.parametrize("part", ["", "-auth", "-password", "-token", "-jwt"])
@pytest.mark.parametrize("kind", [WeightlessError, RuntimeError])
def test_a_secret_in_an_error_reaches_nobody(part: str, kind: type[Exception]) -> None:
    """Whatever part of the secrets an exception repeats, neither the caller nor the log sees it."""
    request = secret_request()
    code, details, logs = outcome(
        kind(f"GET https://bob:{CANARY}{part}@r/x?sig={CANARY}{part}: {CANARY}{part}"), request
    )
    assert code is grpc.StatusCode.INTERNAL
    assert CANARY not in details
    assert CANARY not in repr(logs)


def test_an_unknown_exception_tells_the_caller_nothing_but_where_to_look() -> None:
    """The log has the frames and the same identifier."""
    _, details, logs = outcome(RuntimeError("inside"), publish_request("/t"))
    (line,) = logs
    assert "inside" not in details
    assert details.startswith("internal error, see the log")
    assert line["trace"].startswith("RuntimeError")
    assert "test_status.py" in line["trace"]


@pytest.mark.parametrize("broken", ["clean", "_log_call", "observe"])
def test_what_fails_in_telling_of_a_call_changes_nothing_of_it(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """gRPC would send the text of any exception to the caller, and fail a call that has succeeded."""

    def fail(*_: object) -> None:
        raise RuntimeError(CANARY)

    if broken != "observe":
        monkeypatch.setattr(interceptors, broken, fail)
    context = Context()
    request = publish_request("/t")
    with structlog.testing.capture_logs() as logs:
        call = guarded("NodePublishVolume", lambda *_: "response", fail if broken == "observe" else lambda _: None)
        assert call(request, context) == "response"  # type: ignore[arg-type]
        assert context.aborted is None
    assert [line["method"] for line in logs if line["event"] == "rpc_not_told"] == ["NodePublishVolume"]
    assert CANARY not in repr(logs)


def test_a_message_that_cannot_be_cleaned_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is, and where to look."""
    monkeypatch.setattr(interceptors, "secret_values", lambda _request: 1 / 0)
    code, details, _ = outcome(Conflict(CANARY), publish_request("/t"))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert details.startswith("failed, see the log of the plugin for rpc ")


def test_secrets_of_any_script_are_secrets() -> None:
    """base64 takes ASCII only, and says so by another exception than for the rest; passwords are in every script."""
    config = json.dumps({"auths": {"r": {"password": "pässwort", "auth": "YmVuOtEH"}}})
    assert "pässwort" in secret_values(publish_request("/t", secrets={".dockerconfigjson": config}))


def test_a_known_error_is_one_readable_line() -> None:
    """What, where and fix; the log line names method, code and volume."""
    error = Conflict("is published there", where="/t", fix="unpublish it\nfirst")
    code, details, logs = outcome(error, publish_request("/t"))
    assert (code, details) == (grpc.StatusCode.ALREADY_EXISTS, "/t: is published there (unpublish it first)")
    (line,) = logs
    assert (line["event"], line["method"], line["code"]) == ("rpc_finished", "NodePublishVolume", "ALREADY_EXISTS")
    assert line["request"]["volume_id"] == "csi-1"
    assert line["deadline_s"] == 12.0


def test_what_is_not_offered_says_so() -> None:
    """The generated base raises NotImplementedError."""
    code, details, _ = outcome(NotImplementedError("Method not implemented!"), publish_request("/t"))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "NodePublishVolume" in details


def test_the_visible_request_hides_by_option_and_key() -> None:
    """Secrets by their option, tokens by their key, flags because they may be; the rest is there."""
    shown = visible(secret_request())
    assert CANARY not in repr(shown)
    assert shown["secrets"] == "…"
    assert shown["volume_context"]["csi.storage.k8s.io/serviceAccount.tokens"] == "…"
    assert shown["volume_context"]["csi.storage.k8s.io/pod.uid"] == "7"
    assert shown["volume_capability"]["access_mode"] == {"mode": 3}


def test_the_visible_request_shows_messages_within_messages() -> None:
    """Also repeated ones, and hides in them what it hides elsewhere."""
    flagged = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(fs_type="x", mount_flags=[CANARY]))
    request = pb.CreateVolumeRequest(name="pvc-1", volume_capabilities=[flagged, flagged], secrets={"password": CANARY})
    request.accessibility_requirements.requisite.add().segments["zone"] = "a"
    shown = visible(request)
    assert shown["volume_capabilities"] == [{"mount": {"fs_type": "x", "mount_flags": "…"}}] * 2
    assert shown["accessibility_requirements"] == {"requisite": [{"segments": {"zone": "a"}}]}
    assert CANARY not in repr(shown)


def test_user_names_and_short_words_are_no_secrets() -> None:
    """They would blacken every message."""
    assert "bob" not in secret_values(secret_request())
    assert secret_values(publish_request("/t", secrets={"password": "abc"})) == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:5000/a/b@sha256:00", "127.0.0.1:5000/a/b@sha256:00"),
        ("bob:pw@registry.example.com/a", "registry.example.com/a"),
        ("'bob:pw@registry.example.com/a'", "'registry.example.com/a'"),
        ("https://u:p@h/x?token=1 failed", "https://h/x?… failed"),
        ("name:v1@sha256:00", "name:v1@sha256:00"),
        ("host[:port]/repository[:tag][@digest]", "host[:port]/repository[:tag][@digest]"),
        ("127.0.0.1:5000/a/b:v1@latest", "127.0.0.1:5000/a/b:v1@latest"),
        ("bob:p/w+d==@registry.example.com/a", "registry.example.com/a"),
        ("GET https://bob:p/w@registry.example.com/a", "GET registry.example.com/a"),
        ("two\nlines\x1b[31m", "two lines [31m"),
    ],
)
def test_clean_keeps_what_is_harmless(text: str, shown: str) -> None:
    """References stay readable, credentials in them do not."""
    assert clean(text) == shown


def test_a_message_is_bounded() -> None:
    """Kubelet writes it into an event."""
    assert len(clean("x" * 100_000)) == 2000


@pytest.mark.kernel
def test_each_call_has_one_line_with_all_that_is_known_of_it(place: Place, manager: FakeManager) -> None:
    """Volume, pod, reference, digest, by what it is served, how large it is, code and time; of a failure also its kind."""
    secrets = {"username": "bob", "password": PASSWORD}
    with running(place, manager) as (_, kubelet), structlog.testing.capture_logs() as logs:
        kubelet.publish(place.target(), reference=PRIVATE, secrets=secrets)
        with pytest.raises(grpc.RpcError):
            kubelet.publish(place.target(volume="b"), volume_id="b", reference=PRIVATE)
        kubelet.unpublish(place.target())
    published, refused, unpublished = (line for line in logs if line["event"] == "rpc_finished")
    known = {"volume_id": "csi-1", "pod": "default/reader", "reference": PRIVATE, "served_by": "fuse", "code": "OK"}
    known |= {"bytes_total": 4096, "files": 3}
    for line in (published, unpublished):
        assert known.items() <= line.items()
        assert line["digest"].startswith("sha256:")
        assert line["duration_s"] >= 0
    known = {"volume_id": "b", "pod": "default/reader", "reference": PRIVATE, "code": "UNAUTHENTICATED"}
    assert (known | {"kind": "unauthenticated"}).items() <= refused.items()
    assert PASSWORD not in repr(logs)


def test_facts_are_of_one_call() -> None:
    """What one adds is not in the line of the next, and outside of calls nobody keeps it; references lose their user."""
    with facts.collected() as first:
        facts.add(digest="sha256:1", served_by="", files=None)
        with facts.collected() as inner:
            facts.add(reference=f"bob:{CANARY}@r/a")
    facts.add(digest="nobody's")
    assert (first, inner) == ({"digest": "sha256:1"}, {"reference": "r/a"})


@pytest.mark.kernel
def test_a_publish_is_a_trace(place: Place, manager: FakeManager) -> None:
    """The call, below it resolve and mount, by the names of the conventions; the line in the log has its trace."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    try:
        with running(place, manager) as (_, kubelet), structlog.testing.capture_logs() as logs:
            request = publish_request(place.target())
            kubelet.node.NodePublishVolume(request, timeout=30, metadata=(("traceparent", parent),))
            kubelet.stats(place.target())
            with pytest.raises(grpc.RpcError):
                kubelet.publish(place.target(volume="b"), volume_id="b", reference=PRIVATE)
            kubelet.unpublish(place.target())
    finally:
        tracing.stop()
    resolve, mount, publish, refused, refused_call, unpublish = exporter.get_finished_spans()
    names = ("weightless.resolve", "weightless.mount", "csi.v1.Node/NodePublishVolume", "weightless.resolve")
    assert names == tuple(span.name for span in (resolve, mount, publish, refused))
    assert publish.kind is SpanKind.SERVER
    assert publish.attributes == {
        "rpc.system": "grpc", "rpc.service": "csi.v1.Node", "rpc.method": "NodePublishVolume", "rpc.grpc.status_code": 0,
    }  # fmt: skip
    assert resolve.attributes["weightless.digest"].startswith("sha256:")
    assert mount.attributes["weightless.served_by"] == "fuse"
    assert f"{publish.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert {resolve.parent.span_id, mount.parent.span_id} == {publish.context.span_id}
    assert refused_call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert refused_call.attributes["error.type"] == "unauthenticated"
    assert unpublish.name == "csi.v1.Node/NodeUnpublishVolume"
    line = next(line for line in logs if line["event"] == "rpc_finished")
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
