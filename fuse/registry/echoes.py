"""What a registry may repeat of what it was sent: each form in which a secret goes over the wire. Pure.

A registry's words become errors, and those the events of a pod, whose author need not know whose credentials were shown.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

from fuse.registry.access import Credential

_SHORTEST_VALUE: Final = 8
"""Of a header's: `true` and `default` are no secrets, and would blacken innocent words."""


def basic(credential: Credential) -> str:
    """Its user and password, as Basic authentication sends them (RFC 7617)."""
    return base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def of_credential(credential: Credential | None, authorization: str) -> tuple[str, ...]:
    """Of what is shown to prove who asks; `authorization` is the header that was sent last."""
    found = [authorization.partition(" ")[2]]
    if credential is not None:
        found += [credential.password, credential.identity_token, credential.registry_token]
        if credential.password:
            found.append(basic(credential))
    return _written(found)


def of_headers(headers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Of those that hosts.toml has: their values, and the parts of these, without a scheme before it."""
    parts = [part for _, value in headers for part in (value, *value.split())]
    return _written(part for part in parts if len(part) >= _SHORTEST_VALUE)


def _written(secrets: Iterable[str]) -> tuple[str, ...]:
    """As they are, and as a query or a form writes them."""
    known = [secret for secret in secrets if secret]
    return tuple(dict.fromkeys(form for each in known for form in (each, quote(each, safe=""), quote_plus(each))))
