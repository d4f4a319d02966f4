"""In which order credentials count, and which count at all: the rungs of `given` that the administrator allows.

The strongest comes first, and the first that has something for a host speaks for it; the order is fixed. What the registry then
says is final: a pod that is refused does not come in by a weaker rung. Each host is looked up by itself, so a mirror never sees
what is meant for the registry. Blocking; a `Ladder` may be used from several threads, a `Climb` belongs to one request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Final, Protocol

from fuse.credentials.changes import marker
from fuse.credentials.dockerconfig import DockerConfig, from_secrets, location
from fuse.credentials.given import AMBIENT, RUNGS, Given, Rung
from fuse.credentials.providers import Providers
from fuse.errors import InvalidConfig, Unavailable
from fuse.registry.access import Credential

HELPER_S: Final = 3600.0
"""How long a mount goes on with what a docker helper said: helpers do not say how long it is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is shown to one host."""

    rung: Rung = "anonymous"
    credential: Credential | None = field(default=None, repr=False)
    source: str = ""
    """Where it came from, for people: the name of a provider."""
    ends_at: float = inf
    """Monotonic time from which it is to be looked up again."""
    remembered: bool = False
    """It may be out of date although nobody said so; a look with `fresh` asks anew."""


class Climb(Protocol):
    """One request's credentials."""

    notes: list[str]
    """Why a rung had nothing, where somebody should know."""

    def find(self, image: str) -> Found:
        """What to show for `host[:port]/repository`. Raises InvalidRequest (secrets), InvalidConfig, Unavailable, Cancelled."""
        ...


class Credentials(Protocol):
    """Where credentials come from."""

    def climb(self, given: Given, registry: str, *, cancel: threading.Event, fresh: bool) -> Climb:
        """For a request about `registry` (the host of its reference). Raises InvalidRequest and InvalidConfig."""
        ...

    def allows(self, rung: Rung) -> bool: ...

    def marker(self) -> Hashable:
        """Differs when what the administrator wrote has changed."""
        ...


class Ladder:
    """Credentials for pods: the rungs that are allowed, strongest first."""

    def __init__(
        self,
        *,
        allow: Collection[Rung] = RUNGS,
        docker_config: Path | None = None,
        providers: Providers | None = None,
    ) -> None:
        """`docker_config`: as `DockerConfig.load`."""
        self._allowed = frozenset(allow)
        self._docker_config = docker_config
        self._providers = providers

    def check(self) -> None:
        """Raises InvalidConfig for what is configured and cannot be used."""
        named = self._docker_config
        if named is not None and not named.exists():
            raise InvalidConfig("does not exist", where=str(named), fix="correct docker-config, or create it")
        if self._allowed & AMBIENT:
            DockerConfig.load(named)
        if self._providers is not None:
            self._providers.check()

    def allows(self, rung: Rung) -> bool:
        return rung in self._allowed

    def marker(self) -> Hashable:
        return marker(location(self._docker_config)), self._providers.marker() if self._providers is not None else None

    def climb(self, given: Given, registry: str, *, cancel: threading.Event, fresh: bool) -> Climb:
        allowed = tuple(rung for rung in RUNGS if rung in self._allowed)
        climb = _Climb(allowed, given, registry, self._providers, self._docker_config, cancel, fresh=fresh)
        if given.secrets and not self.allows("publish-secret"):
            climb.notes.append("the volume's secret does not count: this node does not allow publish-secret")
        return climb


class _Climb:
    def __init__(
        self,
        allowed: Sequence[Rung],
        given: Given,
        registry: str,
        providers: Providers | None,
        docker_config: Path | None,
        cancel: threading.Event,
        *,
        fresh: bool,
    ) -> None:
        self.notes: list[str] = []
        self._given = given
        self._providers = providers
        self._docker_config = docker_config
        self._cancel = cancel
        self._fresh = fresh
        self._steps = [(rung, self._step(rung)) for rung in allowed]
        self._secret = from_secrets(given.secrets, registry=registry) if "publish-secret" in allowed else _none

    def find(self, image: str) -> Found:
        for rung, step in self._steps:
            found = step(image)
            if found is not None:
                return replace(found, rung=rung)
        return Found()

    def _step(self, rung: Rung) -> Callable[[str], Found | None]:
        match rung:
            case "pod-identity":
                return lambda image: self._provided(image, of_pods=True)
            case "publish-secret":
                return lambda image: _held(self._secret(image))
            case "driver-secret":
                return lambda image: _held(self._docker().stored(image))
            case "node-identity":
                return lambda image: self._provided(image, of_pods=False) or self._helped(image)
            case "anonymous":
                return lambda _image: None

    def _docker(self) -> DockerConfig:
        # Not before it is needed: a broken file must not refuse a pod that has a secret of its own.
        return DockerConfig.load(self._docker_config)

    def _provided(self, image: str, *, of_pods: bool) -> Found | None:
        if self._providers is None:
            return None
        provided = self._providers.find(
            image, self._given, self.notes.append, of_pods=of_pods, cancel=self._cancel, fresh=self._fresh
        )
        if provided is None:
            return None
        return Found(
            credential=provided.credential,
            source=provided.provider,
            ends_at=provided.ends_at,
            remembered=provided.remembered,
        )

    def _helped(self, image: str) -> Found | None:
        try:
            return _held(self._docker().helped(image, self._cancel), time.monotonic() + HELPER_S)
        except Unavailable as error:
            self.notes.append(error.what)
            return None


def _held(credential: Credential | None, ends_at: float = inf) -> Found | None:
    return None if credential is None else Found(credential=credential, ends_at=ends_at)


def _none(_image: str) -> Credential | None:
    return None


class OwnCredentials:
    """Credentials of who runs a command: docker's configuration, in docker's order, with its helpers."""

    def __init__(self, docker_config: Path | None) -> None:
        """As `DockerConfig.load`."""
        self._docker_config = docker_config

    def allows(self, rung: Rung) -> bool:
        del rung
        return True

    def marker(self) -> Hashable:
        return marker(location(self._docker_config))

    def climb(self, given: Given, registry: str, *, cancel: threading.Event, fresh: bool) -> Climb:
        del cancel, fresh
        return _OwnClimb(DockerConfig.load(self._docker_config), from_secrets(given.secrets, registry=registry))


class _OwnClimb:
    def __init__(self, docker: DockerConfig, secret: Callable[[str], Credential | None]) -> None:
        self.notes: list[str] = []
        self._docker = docker
        self._secret = secret

    def find(self, image: str) -> Found:
        given = self._secret(image)
        if given is not None:
            return Found(rung="publish-secret", credential=given)
        own = self._docker.credential(image)
        return Found(rung="driver-secret" if own is not None else "anonymous", credential=own)
