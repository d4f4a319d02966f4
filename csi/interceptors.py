"""What surrounds every call: an identifier, one log line with all that is known of it, and no exception but as a status.

Whatever a handler raises becomes a code of `csi/status.py` and one readable sentence; `status.details` stays empty, as CSI wants
it. Values of secret fields of the request are cut out of both, whoever put them there: kubelet writes messages into events of
the pod. Handlers never call `context.abort` themselves.
"""

from __future__ import annotations

import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog

from csi import facts
from csi.facts import Fact
from csi.redaction import clean, secret_values, visible
from csi.status import code_of
from fuse import tracing
from fuse.errors import WeightlessError

_QUIET: Final = frozenset(
    {
        "Probe",
        "GetPluginInfo",
        "GetPluginCapabilities",
        "ControllerGetCapabilities",
        "NodeGetCapabilities",
        "NodeGetInfo",
        "NodeGetVolumeStats",
    }
)
"""Called every few seconds: logged at debug level while they succeed."""

_log = structlog.get_logger()
_Handler = Callable[[Any, grpc.ServicerContext], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One that has ended."""

    method: str
    """By name, of those that the protocol has, as the code."""
    code: str
    duration_s: float
    request: Any
    error: WeightlessError | None
    """What it failed with, if that was foreseen."""
    message: str
    """What the caller is told: without secrets."""


Observe = Callable[[Call], None]


def _nobody(_call: Call) -> None:
    return


class Guard(grpc.ServerInterceptor):
    """Wraps unary handlers; there are no others."""

    def __init__(self, observe: Observe = _nobody) -> None:
        self._observe = observe

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            guarded(
                method, handler.unary_unary, self._observe, handler_call_details.method.rpartition("/")[0].strip("/")
            ),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def guarded(method: str, handler: _Handler, observe: Observe = _nobody, service: str = "") -> _Handler:
    """`handler` with the promises of this module."""
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    traced = method not in _QUIET

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        started = time.monotonic()
        rpc = secrets.token_hex(4)
        remaining = context.time_remaining()
        with structlog.contextvars.bound_contextvars(rpc=rpc):
            code, message, trace = grpc.StatusCode.OK, "", ""
            response, failure = None, None
            try:
                with facts.collected() as added, _traced(f"{service}/{method}", attributes, context, wanted=traced):
                    response = handler(request, context)
            except WeightlessError as error:
                failure = error
                code, message = code_of(error), str(error)
            except NotImplementedError:
                code, message = grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered by this plugin"
            except Exception as error:  # noqa: BLE001  (the last line of defence: gRPC would send its text to the caller)
                code = grpc.StatusCode.INTERNAL
                message = f"internal error, see the log of the plugin for rpc {rpc}"
                trace = _frames(error)
            duration_s = time.monotonic() - started
            told = f"failed, see the log of the plugin for rpc {rpc}" if message else ""
            with _harmless(method):
                told = clean(message, secret_values(request))
            with _harmless(method):
                known = facts.of_request(request) | added
                if failure is not None:
                    known["kind"] = failure.kind
                _log_call(method, request, code, told, trace, duration_s, remaining, known)
            with _harmless(method):
                observe(
                    Call(
                        method=method,
                        code=code.name,
                        duration_s=duration_s,
                        request=request,
                        error=failure,
                        message=told,
                    )
                )
        if code is not grpc.StatusCode.OK:
            context.abort(code, told)
        return response

    return call


@contextmanager
def _harmless(method: str) -> Iterator[None]:
    """What is wrong with telling of a call changes nothing of its outcome, and gRPC would send its text to the caller."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (as above)
        with suppress(Exception):  # the log itself may be what fails
            _log.error("rpc_not_told", method=method, trace=_frames(error))


def _frames(error: Exception) -> str:
    """Without its text: that of an unknown exception may hold anything."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"


@contextmanager
def _traced(
    name: str, attributes: Mapping[str, tracing.Value], context: grpc.ServicerContext, *, wanted: bool
) -> Iterator[None]:
    """The call's span, below the caller's if that has one; its trace becomes a fact of the call."""
    if not wanted or not tracing.on():
        yield
        return
    parent = next((str(value) for key, value in context.invocation_metadata() if key == "traceparent"), "")
    with tracing.span(name, attributes, kind="server", parent=parent) as span:
        facts.add(trace_id=tracing.traceparent()[3:35])
        try:
            yield
        except WeightlessError as error:
            span.set("rpc.grpc.status_code", code_of(error).value[0])
            raise
        span.set("rpc.grpc.status_code", 0)


def _log_call(
    method: str,
    request: Any,
    code: grpc.StatusCode,
    message: str,
    trace: str,
    duration_s: float,
    remaining_s: float | None,
    known: Mapping[str, Fact],
) -> None:
    level = "error" if trace else "warning"
    if code is grpc.StatusCode.OK:
        level = "debug" if method in _QUIET else "info"
    values: dict[str, Any] = {"method": method, "code": code.name, "duration_s": round(duration_s, 4), **known}
    if remaining_s is not None and remaining_s < 1e6:
        values["deadline_s"] = round(remaining_s, 1)
    if message:
        values["message"] = message
    if trace:
        values["trace"] = trace
    getattr(_log, level)("rpc_finished", **values, request=visible(request))
