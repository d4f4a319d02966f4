"""How one registry may be reached: what the privileged side reads from hosts.toml, docker's config and secrets.

These values travel to the fetcher, which never reads a credential or a key from a file. Their `repr` shows no secret.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Capability = Literal["pull", "resolve", "push"]


class Credential(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of: user name and password; an identity token (OAuth2 refresh token); a bearer token sent as it is."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credential(username={self.username!r}, …)"

    __str__ = __repr__


class ClientCertificate(msgspec.Struct, frozen=True):
    """PEM texts; the key may be in the certificate's text."""

    certificate: str
    key: str = ""

    def __repr__(self) -> str:
        return "ClientCertificate(…)"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host that serves a registry's content: a mirror or the origin itself (containerd, docs/hosts.md)."""

    url: str
    """Scheme, host, port and the path that precedes `/<repository>/manifests/…`; without a trailing slash."""
    capabilities: tuple[Capability, ...] = ("pull", "resolve")
    origin: bool = False
    named: bool = False
    """The administrator named this host (hosts.toml): the address rules do not apply to it."""
    namespace: str = ""
    """The registry that a mirror stands for: sent as `?ns=`; empty at the origin."""
    ca_pems: tuple[str, ...] = ()
    client_certificates: tuple[ClientCertificate, ...] = ()
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with each request; they may hold secrets."""
    credential: Credential | None = None

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.headers)
        return f"Endpoint({self.url!r}, origin={self.origin}, headers=[{names}], credential={self.credential!r}, …)"

    __str__ = __repr__


class Access(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The endpoints of one registry in the order in which they are tried; the origin is last."""

    registry: str
    """The host of the reference."""
    endpoints: tuple[Endpoint, ...]
    local_allowed: bool = False
    """Whether loopback addresses may be reached without having been named: yes on a laptop, no in a node plugin."""
    offline_s: float = 0.0
    """How old a proof of these credentials may be that stands in for the registry while it cannot be reached; 0: none does."""
