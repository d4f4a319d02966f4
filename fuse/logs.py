"""Structured logs, the same in every process: one event a line on standard error, JSON unless it is a terminal.

Events are `noun_verb` constants with key=value context. Values under a key that names a secret are dropped, user information
in URLs is cut out, whoever passes them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Final

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
_SECRET = re.compile(r"pass(word|wd)|secret|token|authorization|credential|dockerconfig|\bauth\b", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+")


def scrub(text: str) -> str:
    """`text` without user information and queries of URLs (a signed redirect's query is a credential)."""
    return _QUERY.sub(r"\1?…", _USERINFO.sub("", text))


def redact(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor; public for tests."""
    for key, value in event.items():
        if _SECRET.search(key):
            event[key] = "…"
        elif isinstance(value, str):
            event[key] = scrub(value)
        elif isinstance(value, BaseException):
            event[key] = scrub(str(value))
    return event


class _Printer(structlog.PrintLogger):
    """Writes lines as long as somebody takes them: a full disk, or a reader that has gone, must not end the thread that logs."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def configure(process: str, level: str = "info") -> None:
    """Sets up logging for this process. `level` is one of `LEVELS`."""
    terminal = sys.stderr.isatty()
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Printer(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)
