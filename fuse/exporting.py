"""`fuse.tracing` by OpenTelemetry's SDK: imported only where traces are wanted and the extra `otel` is installed."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fuse.logs import scrub
from fuse.tracing import Kind, Value, kind_of

_KINDS: Final = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
}
_COMPLAIN_EVERY_S: Final = 60.0
_MAX_SHOWN: Final = 300
_log = structlog.get_logger()
_propagator: Final = TraceContextTextMapPropagator()


def provider_of(process: str, environ: Mapping[str, str]) -> TracerProvider:
    """As the variables say: exporter, endpoint, sampler, limits, resource. Raises what the SDK raises for wrong ones."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers, logger.propagate = [_Complaints()], False
    provider = TracerProvider(resource=resource_of(process, environ))
    provider.add_span_processor(BatchSpanProcessor(_exporter(environ)))
    return provider


def resource_of(process: str, environ: Mapping[str, str]) -> Resource:
    """Ours, and over it what the administrator says."""
    attributes = {
        "service.name": "weightless",
        "service.version": metadata.version("weightless"),
        "service.instance.id": str(uuid.uuid4()),
        "weightless.process": process,
    }
    if "OTEL_SERVICE_NAME" in environ:
        del attributes["service.name"]
    given = Resource.create({})
    stated = {
        name: value for name, value in given.attributes.items() if name in attributes and "unknown" not in str(value)
    }
    return given.merge(Resource(attributes | stated))


def _exporter(environ: Mapping[str, str]) -> SpanExporter:
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") == "console":
        return ConsoleSpanExporter()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol == "grpc":
        # Not part of the extra: whoever wants it installs opentelemetry-exporter-otlp-proto-grpc as well.
        by_grpc = import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
        exporter: SpanExporter = by_grpc.OTLPSpanExporter()
        return exporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class _Complaints(logging.Handler):
    """What the SDK says of a collector that is away, as a line of our log: a few, without tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if not self._told_at or now - self._told_at >= _COMPLAIN_EVERY_S:
            self._told_at = now
            _log.warning("traces_not_sent", words=scrub(record.getMessage())[:_MAX_SHOWN])


class Recorded:
    """A `fuse.tracing.Span`."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR, kind)


@contextmanager
def recorded(
    tracer: trace.Tracer,
    name: str,
    attributes: Mapping[str, Value] | None,
    *,
    kind: Kind,
    parent: str = "",
    links: Sequence[str] | None = None,
) -> Iterator[Recorded]:
    """With `links` it is the root of a trace."""
    context = _context_of(parent) if parent else Context() if links is not None else None
    with tracer.start_as_current_span(
        name,
        context=context,
        kind=_KINDS[kind],
        attributes=attributes,
        links=[trace.Link(other) for other in map(_span_context_of, links or ()) if other.is_valid],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        mine = Recorded(span)
        try:
            yield mine
        except BaseException as error:
            mine.fail(kind_of(error))
            raise


def current() -> str:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")


def _context_of(traceparent: str) -> Context:
    return _propagator.extract({"traceparent": traceparent}, Context())


def _span_context_of(traceparent: str) -> trace.SpanContext:
    return trace.get_current_span(_context_of(traceparent)).get_span_context()
