"""Annotations of others' objects: of claims, for the controller; of ServiceAccounts, for credential providers.

With a connection of its own each time: it is seldom, and from several threads. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final, Protocol
from urllib.parse import quote

import msgspec

from csi.kubernetes.api import ApiServer
from csi.kubernetes.cluster import Cluster, in_cluster
from fuse.errors import Forbidden, InvalidConfig, NotFound, Unauthenticated, Unavailable


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
        namespace, name = quote(thing.namespace, safe=""), quote(thing.name, safe="")
        try:
            with closing(ApiServer(cluster)) as api:
                found = api.get(f"/api/v1/namespaces/{namespace}/{self._plural}/{name}")
            return msgspec.convert(found, _Object).metadata.annotations or {}
        except NotFound as error:
            raise NotFound("there is none of that name", where=where) from error
        except (Forbidden, Unauthenticated) as error:
            right = f"let the {self._reader}'s ServiceAccount get {self._plural}"
            raise InvalidConfig(f"the API server {error.what}", where=where, fix=right) from error
        except msgspec.ValidationError as error:
            raise Unavailable("the API server's answer is no such object", where=where) from error
        except Unavailable as error:
            raise error.again(where=f"{where}, {error.where}") from error


CLAIMS: Final = AnnotationReader("PersistentVolumeClaim", "persistentvolumeclaims", "controller")
ACCOUNTS: Final = AnnotationReader("ServiceAccount", "serviceaccounts", "node plugin")
