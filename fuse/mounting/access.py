"""From a reference and what the administrator, the user and a request give to an `Access`: the one place on the privileged side
where hosts.toml, keys and credentials come together. The fetcher gets values, never paths.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from fuse.artifact.reference import Reference
from fuse.credentials.given import NAMED_IN, Given, Rung
from fuse.credentials.ladder import Credentials, Found, OwnCredentials
from fuse.credentials.matching import matches
from fuse.errors import AddressRefused, Forbidden, Unauthenticated, WeightlessError
from fuse.registry.access import Access, Credential
from fuse.registry.hosts import load_access

_NOBODY: Final = Given()
_REFUSED: Final[dict[Rung, str]] = {
    "pod-identity": "credential provider {source} gave these for ServiceAccount {account}: let that account pull this",
    "publish-secret": "these are of the volume's secret ({named_in}): correct it, or let its user pull this",
    "driver-secret": "these are the driver's own (docker-config), as the volume names no secret for {registry}: name one in "
    "{named_in}, or let the driver's user pull this",
    "node-identity": "these are of the node{by}, as the volume names no secret for {registry}: name one in "
    "{named_in}, or let the node pull this",
    "anonymous": "there were no credentials for {registry}: name a secret for it in the volume's {named_in}",
}
"""What to do about a refusal, by whose credentials were refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a request may be tried with, and whose credentials that are."""

    access: Access
    rung: Rung
    """Of those that are for the registry itself."""
    rungs: frozenset[Rung] = frozenset()
    """Of those for any host."""
    source: str = ""
    """Of the same: the credential provider, if it was one."""
    account: str = ""
    named_in: str = NAMED_IN
    """Where a person names another secret."""
    ends_at: float = float("inf")
    """Monotonic time from which credentials are to be looked up again, for any of the hosts."""
    remembered: bool = False
    """Some come from memory, and may be out of date: `AccessReader.admit` with `fresh` asks anew."""
    notes: tuple[str, ...] = field(default=())
    """Why other credentials were not used."""

    def explained(self, error: WeightlessError) -> WeightlessError:
        """A refusal with the cure that fits these credentials; other errors as they are."""
        if not isinstance(error, Unauthenticated | Forbidden):
            return error
        by = f", by {self.source}" if self.source else ""
        cure = _REFUSED[self.rung].format(
            registry=self.access.registry,
            source=self.source,
            account=self.account or "of the pod",
            by=by,
            named_in=self.named_in,
        )
        known = () if error.fix == error.usual_fix else (error.fix,)
        return error.again(fix="; ".join((*known, cure, *self.notes)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessReader:
    """How registries are reached from this node. Files are read anew for each access: they change while a plugin runs."""

    certs_dir: Path | None = None
    """containerd's directory of hosts.toml files."""
    plain_http: bool = False
    docker_config: Path | None = None
    """Of who runs a command, where there are no `credentials`: as `fuse.credentials.dockerconfig.DockerConfig.load`."""
    credentials: Credentials | None = None
    """Those that count for pods (`fuse.credentials.ladder.Ladder`)."""
    local_allowed: bool = False
    """Whether loopback addresses may be reached: yes for a user's own command, no for a node plugin."""
    offline_s: float = 0.0
    """`Access.offline_s`: the administrator's policy for a registry that cannot be reached."""
    allowed: tuple[str, ...] | None = None
    """Patterns (`fuse.credentials.matching`) of what may be mounted at all; None: everything."""

    def access(self, reference: str, secrets: Mapping[str, str] | None = None) -> Access:
        """As `admit`, for who needs no more."""
        return self.admit(reference, Given(secrets=secrets or {})).access

    def admit(
        self,
        reference: str,
        given: Given = _NOBODY,
        *,
        cancel: threading.Event | None = None,
        fresh: bool = False,
    ) -> Admission:
        """What to ask the registry with. `fresh`: what was remembered of credentials does not count.

        Raises InvalidReference, InvalidRequest (secrets), InvalidConfig (hosts.toml, config.json, providers), Cancelled, and
        Unauthenticated where there are no credentials and the administrator wants some, AddressRefused for what is not `allowed`:
        then no credential is looked up, and nobody is asked.
        """
        named = Reference.parse(reference)
        if self.allowed is not None and not any(matches(pattern, named.name) for pattern in self.allowed):
            raise AddressRefused(
                "this node mounts nothing from there",
                where=named.name,
                fix="use an artifact that is allowed, or let an administrator add this one to [registry] allowed",
            )
        source = self._source
        climb = source.climb(given, named.host, cancel=cancel or threading.Event(), fresh=fresh)
        found: dict[str, Found] = {}

        def credential(host: str) -> Credential | None:
            if host not in found:
                found[host] = climb.find(f"{host}/{named.repository}")
            return found[host].credential

        access = load_access(
            named.host,
            certs_dir=self.certs_dir,
            plain_http=self.plain_http,
            credential=credential,
            local_allowed=self.local_allowed,
        )
        own = found.get(_asked_of(access, named.host), Found())
        admission = Admission(
            access=msgspec.structs.replace(access, offline_s=self.offline_s),
            rung=own.rung,
            rungs=frozenset(each.rung for each in found.values()),
            source=own.source,
            account=str(given.account or ""),
            named_in=given.named_in,
            ends_at=min((each.ends_at for each in found.values()), default=float("inf")),
            remembered=any(each.remembered for each in found.values()),
            notes=tuple(dict.fromkeys(climb.notes)),
        )
        if own.rung == "anonymous" and not source.allows("anonymous"):
            refusal = Unauthenticated(
                f"nothing is pulled without credentials on this node, and there are none for {named.host}"
            )
            raise admission.explained(refusal.again(where=str(named)))
        return admission

    def marker(self) -> Hashable:
        """Differs when the credentials that the administrator gives have changed, whatever hosts they are for."""
        return self._source.marker()

    @property
    def _source(self) -> Credentials:
        return self.credentials or OwnCredentials(self.docker_config)


def _asked_of(access: Access, host: str) -> str:
    """The host whose credentials are those for the registry itself: another one where hosts.toml says `server`."""
    origin = next((each for each in reversed(access.endpoints) if each.origin), None)
    return urlsplit(origin.url).netloc if origin is not None and origin.namespace else host
