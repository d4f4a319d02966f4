"""Traces: nothing where nobody asks for them; where somebody does, what stands in a span, and what never does."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fuse import exporting, tracing
from fuse.bucket import Bucket
from fuse.errors import NotFound

CANARY = "canary-hunter2"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.stop()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_traces_are_asked_for_by_the_standard_variables(environ: dict[str, str], expected: bool) -> None:
    """And by none of ours."""
    assert tracing.wanted(environ) == expected


def test_nobody_who_does_not_trace_imports_anything_for_it() -> None:
    """A span is nothing then, in the plugin as in the fetcher."""
    program = (
        "import sys; from fuse import tracing; import csi.plugin, fuse.fetch.__main__\n"
        "tracing.start('plugin', {})\n"
        "with tracing.span('x') as span: span.set('a', 1)\n"
        "with tracing.sparse_span('x', {}, links=('y',)): assert tracing.traceparent() == ''\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_the_extra_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And everything goes on."""
    monkeypatch.setitem(sys.modules, "fuse.exporting", None)
    monkeypatch.delattr("fuse.exporting", raising=False)
    with structlog.testing.capture_logs() as logs:
        tracing.start("plugin", {"OTEL_TRACES_EXPORTER": "console"})
    assert not tracing.on()
    assert [line["event"] for line in logs] == ["tracing_not_installed"]
    assert "weightless[otel]" in logs[0]["fix"]


def test_variables_that_are_wrong_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK refuses them, and a line says so."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100")
    with structlog.testing.capture_logs() as logs:
        tracing.start("plugin", {"OTEL_TRACES_EXPORTER": "console"})
    tracing.stop()
    assert [line["event"] for line in logs] == ["tracing_not_started"]


def test_a_span_has_the_kind_of_an_error_and_not_its_words(spans: InMemorySpanExporter) -> None:
    """They may be a stranger's; an error of ours has a name of its own."""
    for error in (NotFound(CANARY, where=CANARY), RuntimeError(CANARY)):
        with pytest.raises(type(error)), tracing.span("work", {"a": 1}):
            raise error
    found = spans.get_finished_spans()
    assert [span.attributes["error.type"] for span in found] == ["not_found", "RuntimeError"]  # type: ignore[index]
    assert CANARY not in "".join(span.to_json() for span in found)
    assert all(not span.status.is_ok for span in found)


def test_a_trace_goes_on_in_another_process(spans: InMemorySpanExporter) -> None:
    """By its traceparent; one that is none begins a trace of its own."""
    with tracing.span("here", kind="server"):
        sent = tracing.traceparent()
        with tracing.inner_span("GET", kind="client"):
            pass
    with tracing.span("there", parent=sent), tracing.span("inside"):
        pass
    with tracing.span("alone", parent="nonsense"), tracing.inner_span("x", kind="client"):
        pass
    with tracing.inner_span("nothing", kind="client"):
        pass
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"here", "GET", "there", "inside", "alone", "x"}
    assert {found[name].context.trace_id for name in ("here", "GET", "there", "inside")} == {
        found["here"].context.trace_id
    }
    assert found["there"].parent.span_id == found["here"].context.span_id
    assert found["GET"].parent.span_id == found["here"].context.span_id
    assert found["alone"].parent is None


def test_transfers_are_linked_and_few(spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a trace of its own; beyond a few in a second they are not recorded."""
    monkeypatch.setattr(tracing, "_sparse", Bucket(0.001, 2, 0.0))
    with tracing.span("publish"):
        link = tracing.traceparent()
        for _ in range(10):
            with tracing.sparse_span("transfer", {"n": 1}, links=(link, "")):
                pass
    *transfers, publish = spans.get_finished_spans()
    assert 1 <= len(transfers) <= 4
    for transfer in transfers:
        assert transfer.parent is None
        (only,) = transfer.links
        assert only.context.trace_id == publish.context.trace_id != transfer.context.trace_id


def test_the_administrator_has_the_last_word_on_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the service, by either variable."""
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    assert exporting.resource_of("fetcher", {}).attributes["service.name"] == "weightless"
    assert exporting.resource_of("fetcher", {}).attributes["weightless.process"] == "fetcher"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=models,deployment.environment=test")
    found = exporting.resource_of("fetcher", {"OTEL_RESOURCE_ATTRIBUTES": "x"}).attributes
    assert (found["service.name"], found["deployment.environment"]) == ("models", "test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    assert exporting.resource_of("fetcher", {"OTEL_SERVICE_NAME": "named"}).attributes["service.name"] == "named"


def test_what_the_sdk_complains_of_is_a_line_of_our_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a minute, without the user information of a URL."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    logger = logging.getLogger("opentelemetry")
    before = logger.handlers, logger.propagate
    provider = exporting.provider_of("plugin", {"OTEL_TRACES_EXPORTER": "console"})
    try:
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                logging.getLogger("opentelemetry.x").warning("cannot send to %s", f"http://bob:{CANARY}@c/v1")
    finally:
        logger.handlers, logger.propagate = before
        provider.shutdown()
    assert [line["event"] for line in logs] == ["traces_not_sent"]
    assert logs[0]["words"] == "cannot send to http://c/v1"


def test_an_end_does_not_wait_for_a_collector_that_hangs() -> None:
    """What it had to say is lost then."""

    class Hanging:
        def get_tracer(self, _name: str) -> Any:
            return None

        def shutdown(self) -> None:
            threading.Event().wait(60)

    tracing.use(Hanging())
    tracing.stop(0.01)
    assert not tracing.on()
