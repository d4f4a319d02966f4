"""What both HTTP clients answer with, and what a registry's failure means as an error of ours.

"Temporary?" is answered here and nowhere else. Texts of the other side are shortened and cleaned before they are shown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, Protocol

import msgspec

from fuse.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable, WeightlessError
from fuse.logs import scrub

MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_SHOWN: Final = 200
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TEMPORARY: Final = frozenset({408, 421, 425, 429})


class TooLarge(Exception):
    """A body is larger than the limit it was read with."""


class Reply(Protocol):
    """An answer whose body has not been read. `close` must be called; a body read to its end leaves the connection usable."""

    @property
    def status(self) -> int: ...

    def header(self, name: str) -> str:
        """All values of a header, joined by commas; empty when it is absent."""
        ...

    def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises TooLarge, and Unavailable when it breaks off."""
        ...

    def close(self) -> None: ...


class _Problem(msgspec.Struct):
    code: str = ""
    message: Any = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem] = []


def failure(reply: Reply, where: str, *, secrets: Sequence[str] = ()) -> WeightlessError:
    """The error that a status other than success stands for; reads the body and closes the reply.

    `secrets` are cut out of what the registry says: a hostile one repeats what it was sent.
    """
    try:
        said = explanation(reply, secrets)
        retry_after_s = parse_retry_after(reply.header("Retry-After"))
    finally:
        reply.close()
    status = reply.status
    if status == 404:
        return NotFound(said or "not found", where=where, fix="check the host, the repository and the tag or digest")
    if status == 401:
        what = "the credentials are missing or not accepted"  # without them, a registry's own words are often the same
        return Unauthenticated(f"{what}: {said}" if said else what, where=where)
    if status == 403:
        return Forbidden(said or "access denied", where=where)
    shown = f"the registry answers {status}{_phrase(status)}{f': {said}' if said else ''}"
    if status >= 500 or status in _TEMPORARY or status < 400:
        return Unavailable(shown, where=where, fix=_way_out(status), retry_after_s=retry_after_s, answered=status < 500)
    return InvalidRequest(shown, where=where, fix="check the reference, and that this host is a registry")


def _way_out(status: int) -> str:
    if status == 429:
        return "the registry limits how often it is asked: log in if it allows more to its users, or try again later"
    if status >= 500:
        return "the registry itself is in trouble: try again later, or tell whoever runs it"
    return ""


def explanation(reply: Reply, secrets: Sequence[str] = ()) -> str:
    """The first of the registry's `errors[]` (distribution-spec, "Error Codes"), fit to be shown; empty when there is none."""
    try:
        body = reply.read(MAX_ERROR_BYTES)
        problems = msgspec.json.decode(body, type=_Problems).errors
    except (TooLarge, Unavailable, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if not problems:
        return ""
    message = problems[0].message if isinstance(problems[0].message, str) else ""
    return clean(": ".join(part for part in (problems[0].code, message) if part), secrets)


def clean(text: str, secrets: Sequence[str] = ()) -> str:
    """`text` of a stranger on one line, without control characters, URLs' secrets and ours, and not long."""
    # The longest first: a part of another one must not be cut out before it.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "…")
    text = scrub(" ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _MAX_SHOWN]).split()))
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def parse_retry_after(value: str) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3); None for none or nonsense."""
    value = value.strip()
    if value.isascii() and value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, OverflowError):
        return None


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""
