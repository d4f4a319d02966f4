"""Traces, from a publish to the requests that it leads to, where an administrator asks for them; nothing at all elsewhere.

They are asked for by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_TRACES_EXPORTER`), and need the extra
`weightless[otel]`, which is imported only then. Without, a span is one look at a global. Two processes have spans, the node
plugin and the fetcher; the context goes from one to the other as a W3C traceparent, beside the request. A worker has none: it has
no network, and a read takes less time than a span.

A span never carries a message of an error, nor a URL: those may hold what a stranger wrote, or a signature. Thread-safe.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self

import structlog

from fuse.bucket import Bucket
from fuse.errors import WeightlessError

Kind = Literal["internal", "server", "client"]
Value = str | int | float | bool
_ASKED_BY: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_FAREWELL_S: Final = 2.0
_SPARSE_PER_S: Final = 10.0
"""Of spans that there may be any number of: more say nothing that these do not, and are not for free."""

_log = structlog.get_logger()


class Span(Protocol):
    def set(self, name: str, value: Value) -> None: ...

    def fail(self, kind: str) -> None:
        """Of what kind the error was; one that is raised through the span says so by itself."""
        ...


class _Nothing:
    """The span of those who trace nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def set(self, name: str, value: Value) -> None:
        del name, value

    def fail(self, kind: str) -> None:
        del kind


_NOTHING: Final = _Nothing()
_tracer: Any = None
"""An opentelemetry.trace.Tracer while spans are recorded."""
_provider: Any = None
_sparse = Bucket(_SPARSE_PER_S, 2 * _SPARSE_PER_S, 0.0)
_sparse_lock = threading.Lock()


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return environ.get("OTEL_TRACES_EXPORTER") != "none" and any(environ.get(name) for name in _ASKED_BY)


def start(process: str, environ: Mapping[str, str] = os.environ) -> None:
    """Records from now on, if that is wanted. Nothing fails where it cannot: a log line says so."""
    if not wanted(environ):
        return
    try:
        from fuse.exporting import provider_of
    except ImportError as error:
        _log.warning("tracing_not_installed", missing=error.name, fix="pip install 'weightless[otel]'")
        return
    try:
        provider = provider_of(process, environ)
    except Exception as error:  # noqa: BLE001  (what a variable of an administrator makes of somebody else's code)
        _log.warning("tracing_not_started", error=type(error).__name__, fix="see the variables OTEL_*")
        return
    use(provider)
    _log.info("tracing_started", process=process)


def on() -> bool:
    return _tracer is not None


def use(provider: Any) -> None:
    """Has spans recorded by a TracerProvider; None: by nobody."""
    global _tracer, _provider
    _provider = provider
    _tracer = provider.get_tracer("weightless") if provider is not None else None


def stop(limit_s: float = _FAREWELL_S) -> None:
    """Sends what is left, for a moment: an end must not wait for a collector."""
    provider = _provider
    use(None)
    if provider is not None:
        ending = threading.Thread(target=provider.shutdown, name="tracing-end", daemon=True)
        ending.start()
        ending.join(limit_s)


def span(
    name: str,
    attributes: Mapping[str, Value] | None = None,
    *,
    kind: Kind = "internal",
    parent: str = "",
) -> AbstractContextManager[Span]:
    """Below the current span of this thread, or below `parent`, a traceparent."""
    if _tracer is None:
        return _NOTHING
    from fuse.exporting import recorded

    return recorded(_tracer, name, attributes, kind=kind, parent=parent)


def inner_span(name: str, attributes: Mapping[str, Value] | None = None, *, kind: Kind) -> AbstractContextManager[Span]:
    """As `span`, but only below one of this thread: nothing on its own."""
    return span(name, attributes, kind=kind) if traceparent() else _NOTHING


def sparse_span(name: str, attributes: Mapping[str, Value], *, links: Iterable[str]) -> AbstractContextManager[Span]:
    """A trace of its own, linked to others by their traceparents; a few in a second, the rest is not recorded."""
    if _tracer is None:
        return _NOTHING
    with _sparse_lock:
        now = time.monotonic()
        if _sparse.wait_s(now):
            return _NOTHING
        _sparse.draw(1, now)
    from fuse.exporting import recorded

    return recorded(_tracer, name, attributes, kind="internal", links=tuple(links))


def traceparent() -> str:
    """Of the current span, for another process; empty when there is none."""
    if _tracer is None:
        return ""
    from fuse.exporting import current

    return current()


def kind_of(error: BaseException) -> str:
    """What an error is called in a span: never what it says."""
    return error.kind if isinstance(error, WeightlessError) else type(error).__name__
