"""What the controller asks of the API server: which annotations a claim bears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final
from urllib.parse import quote

import msgspec

from csi.kubernetes.api import ApiServer
from csi.kubernetes.cluster import Cluster, in_cluster
from csi.templates import Claim
from fuse.errors import Forbidden, InvalidConfig, NotFound, Unauthenticated, Unavailable

_RIGHT: Final = "let the controller's ServiceAccount get persistentvolumeclaims"


class _Metadata(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _Claim(msgspec.Struct):
    metadata: _Metadata


class Claims:
    """Asks with a connection of its own each time: it is seldom, and from several threads. Thread-safe."""

    def __init__(self, cluster: Callable[[], Cluster | None] = in_cluster) -> None:
        self._cluster = cluster

    def annotations(self, claim: Claim) -> Mapping[str, str]:
        """Raises InvalidConfig where this is no pod or may not ask, NotFound, Unavailable."""
        where = f"PersistentVolumeClaim {claim.namespace}/{claim.name}"
        cluster = self._cluster()
        if cluster is None:
            raise InvalidConfig(
                "a claim's annotations can be asked for only in a cluster, with a ServiceAccount's token",
                where=where,
                fix="run the controller in a pod with automountServiceAccountToken, or name the model in the StorageClass",
            )
        namespace, name = quote(claim.namespace, safe=""), quote(claim.name, safe="")
        try:
            with closing(ApiServer(cluster)) as api:
                found = api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
            return msgspec.convert(found, _Claim).metadata.annotations or {}
        except NotFound as error:
            raise NotFound("there is no such claim", where=where) from error
        except (Forbidden, Unauthenticated) as error:
            raise InvalidConfig(f"the API server {error.what}", where=where, fix=_RIGHT) from error
        except msgspec.ValidationError as error:
            raise Unavailable("the API server's answer is no claim", where=where) from error
        except Unavailable as error:
            raise error.again(where=f"{where}, {error.where}") from error
