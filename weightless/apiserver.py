"""The cluster's API server as a pod sees it: the one question that a controller has, which annotations a claim bears.

Address and certificate are where kubelet puts them for every pod; the token is read anew each time, since it is renewed.
Thread-safe.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx
import msgspec

from csi.templates import Claim
from fuse.errors import InvalidConfig, NotFound, Unavailable

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S: Final = 10.0
_RIGHT: Final = "let the controller's ServiceAccount get persistentvolumeclaims"


class _Metadata(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _Claim(msgspec.Struct):
    metadata: _Metadata


class ApiServer:
    def __init__(self, account: Path = _ACCOUNT, environment: Mapping[str, str] | None = None) -> None:
        self._account = account
        self._environment = os.environ if environment is None else environment

    def annotations(self, claim: Claim) -> Mapping[str, str]:
        """Raises InvalidConfig where this is no pod or may not ask, NotFound, Unavailable."""
        where = f"PersistentVolumeClaim {claim.namespace}/{claim.name}"
        namespace, name = quote(claim.namespace, safe=""), quote(claim.name, safe="")
        url = f"{self._address()}/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
        try:
            # No proxy: the API server is inside.
            with httpx.Client(verify=self._trust(), trust_env=False, timeout=_TIMEOUT_S) as client:
                answer = client.get(url, headers={"Authorization": f"Bearer {self._token()}"})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"the API server does not answer: {error}", where=where) from error
        match answer.status_code:
            case 200:
                return self._decoded(answer.content, where)
            case 404:
                raise NotFound("there is no such claim", where=where)
            case 401 | 403:
                raise InvalidConfig(f"the API server answers {answer.status_code}", where=where, fix=_RIGHT)
            case status:
                raise Unavailable(f"the API server answers {status}", where=where)

    def _decoded(self, content: bytes, where: str) -> Mapping[str, str]:
        try:
            return msgspec.json.decode(content, type=_Claim).metadata.annotations or {}
        except msgspec.DecodeError as error:
            raise Unavailable(f"the API server's answer is not understood: {error}", where=where) from error

    def _address(self) -> str:
        host = self._environment.get("KUBERNETES_SERVICE_HOST")
        if not host:
            raise InvalidConfig(
                "a claim's annotations are asked for outside of a cluster",
                where="KUBERNETES_SERVICE_HOST",
                fix="run the controller in a pod, or name the model in the StorageClass",
            )
        port = self._environment.get("KUBERNETES_SERVICE_PORT", "443")
        return f"https://{f'[{host}]' if ':' in host else host}:{port}"

    def _trust(self) -> ssl.SSLContext:
        path = self._account / "ca.crt"
        try:
            return ssl.create_default_context(cafile=str(path))
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig("the cluster's certificate cannot be used", where=str(path), fix=_RIGHT) from error

    def _token(self) -> str:
        path = self._account / "token"
        try:
            return path.read_text().strip()
        except OSError as error:
            raise InvalidConfig(
                f"the ServiceAccount's token cannot be read: {error.strerror}",
                where=str(path),
                fix="set automountServiceAccountToken: true for the controller's pod",
            ) from error
