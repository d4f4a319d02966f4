"""What a request brings to show to registries, and the kinds of credentials that there are, which are called rungs. Values; pure.

    pod-identity     of credential providers that get a token of the pod's ServiceAccount
    publish-secret   of the secret that the volume names (nodePublishSecretRef)
    driver-secret    of the driver's own docker configuration: they count for every pod
    node-identity    of credential providers that go by the node, and of that configuration's helpers: for every pod as well
    anonymous        none

Tokens are kubelet's (CSIDriver, `tokenRequests`): one an audience, bound to the pod, and good for an hour or so. They are never
shown to a registry: a credential provider exchanges them for something that is.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final, Literal, get_args

import msgspec

from fuse.errors import InvalidRequest

Rung = Literal["pod-identity", "publish-secret", "driver-secret", "node-identity", "anonymous"]
RUNGS: Final[tuple[Rung, ...]] = get_args(Rung)
"""The strongest first."""
AMBIENT: Final[frozenset[str]] = frozenset({"driver-secret", "node-identity"})
"""Those that need nothing of a request: they can be looked up at any time."""
PROVIDED: Final[frozenset[str]] = frozenset({"pod-identity", "node-identity"})
"""Those that programs give: the administrator's file of them may change."""

NAMED_IN: Final = "nodePublishSecretRef"
"""Where the secret of a publish is named."""

PROVIDER_USER: Final = 65532
"""Whom credential providers run as where nothing else is said: neither the workers' user nor the fetcher's, which take what
strangers send."""


def is_weaker(rung: str, other: str) -> bool:
    """Whether `rung` stands below `other`; not if one of them is unknown."""
    order = [str(each) for each in RUNGS]
    return rung in order and other in order and order.index(rung) > order.index(other)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """For one audience."""

    text: str = field(repr=False)
    expires_at: float
    """Unix time."""
    account: ServiceAccount | None = None
    """Whose it says that it is; None when it does not say."""
    account_uid: str = ""
    """An account that was deleted and made again under the same name is another."""

    @property
    def name(self) -> str:
        """What stands for it in keys: it does not lead back to the token."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """All of it; nothing by default, as at a command line, or when a volume is mounted again."""

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    account: ServiceAccount | None = None
    tokens: Mapping[str, Token] = field(default_factory=dict, repr=False)
    """By audience."""
    named_in: str = NAMED_IN
    """Where a person names the secret for such a request."""


class _Token(msgspec.Struct, rename="camel"):
    token: str
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)]


class _KubernetesClaims(msgspec.Struct):
    namespace: str = ""
    serviceaccount: dict[str, str] = {}


class _Claims(msgspec.Struct):
    kubernetes: _KubernetesClaims = msgspec.field(name="kubernetes.io", default_factory=_KubernetesClaims)


def parse_tokens(text: str, where: str) -> dict[str, Token]:
    """The tokens in kubelet's JSON, by audience. Raises InvalidRequest."""
    try:
        found = msgspec.json.decode(text, type=dict[str, _Token])
    except (msgspec.DecodeError, RecursionError):
        # Its message could quote a token.
        raise InvalidRequest(
            "is not what kubelet writes (JSON: audience, token, expirationTimestamp)", where=where
        ) from None
    return {audience: _token(each) for audience, each in found.items()}


def _token(said: _Token) -> Token:
    claims = _claims(said.token)
    name, uid = (claims.serviceaccount.get(key, "") for key in ("name", "uid"))
    return Token(
        text=said.token,
        expires_at=said.expiration_timestamp.timestamp(),
        account=ServiceAccount(claims.namespace, name) if claims.namespace and name else None,
        account_uid=uid,
    )


def _claims(token: str) -> _KubernetesClaims:
    """What the token itself says, unverified, for it comes from kubelet over a socket that is root's; nothing if it is no JWT."""
    payload = token.split(".")[1:2]
    try:
        text = base64.urlsafe_b64decode(payload[0] + "=" * (-len(payload[0]) % 4)) if payload else b""
        return msgspec.json.decode(text, type=_Claims).kubernetes
    except (ValueError, msgspec.DecodeError, RecursionError):
        return _KubernetesClaims()
