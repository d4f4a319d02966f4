"""Annotations of others' objects: of claims, for the controller; of ServiceAccounts, for credential providers.

With a connection of its own each time: it is seldom, and from several threads. A publish waits for it, so an API server that does
not answer is waited for once, and not by each provider and each pod in turn. Thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final, Protocol
from urllib.parse import quote

import msgspec

from csi.kubernetes.api import ApiServer
from csi.kubernetes.cluster import Cluster, in_cluster
from fuse.errors import Forbidden, InvalidConfig, NotFound, Unauthenticated, Unavailable

LIMIT_S: Final = 5.0
HOLDS_S: Final = 5.0
"""How long an answer that did not come counts for those who ask next."""


class Named(Protocol):
    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...


class _Metadata(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata


class AnnotationReader:
    """Of one kind of objects."""

    def __init__(self, kind: str, plural: str, reader: str, cluster: Callable[[], Cluster | None] = in_cluster) -> None:
        """`reader`: what process of ours reads them, for the cures."""
        self._kind = kind
        self._plural = plural
        self._reader = reader
        self._cluster = cluster
        self._away: tuple[float, Unavailable] | None = None
        """Since when the API server does not answer (monotonic), and what was said of that."""

    def annotations(self, thing: Named) -> Mapping[str, str]:
        """Raises InvalidConfig where this is no pod or may not ask, NotFound, Unavailable."""
        where = f"{self._kind} {thing.namespace}/{thing.name}"
        cluster = self._cluster()
        if cluster is None:
            raise InvalidConfig(
                "annotations can be asked for only in a cluster, with a ServiceAccount's token",
                where=where,
                fix=f"run the {self._reader} in a pod with automountServiceAccountToken, or do without annotations",
            )
        away = self._away
        if away is not None and time.monotonic() - away[0] < HOLDS_S:
            raise away[1].again(where=f"{where}, {away[1].where}")
        namespace, name = quote(thing.namespace, safe=""), quote(thing.name, safe="")
        try:
            with closing(ApiServer(cluster, LIMIT_S)) as api:
                found = api.get(f"/api/v1/namespaces/{namespace}/{self._plural}/{name}")
            self._away = None
            return msgspec.convert(found, _Object).metadata.annotations or {}
        except NotFound as error:
            raise NotFound("there is none of that name", where=where) from error
        except (Forbidden, Unauthenticated) as error:
            right = f"let the {self._reader}'s ServiceAccount get {self._plural}"
            raise InvalidConfig(f"the API server {error.what}", where=where, fix=right) from error
        except msgspec.ValidationError as error:
            raise Unavailable("the API server's answer is no such object", where=where) from error
        except Unavailable as error:
            if not error.answered:
                self._away = (time.monotonic(), error)
            raise error.again(where=f"{where}, {error.where}") from error


CLAIMS: Final = AnnotationReader("PersistentVolumeClaim", "persistentvolumeclaims", "controller")
ACCOUNTS: Final = AnnotationReader("ServiceAccount", "serviceaccounts", "node plugin")
