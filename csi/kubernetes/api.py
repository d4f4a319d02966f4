"""The API server, reached as any pod reaches it: over TLS, with the token of the pod's ServiceAccount.

Three kinds of requests do not need a Kubernetes client: httpx, which the program has anyway, takes a third of the memory of the
smallest of them. The token is read anew for each request, since kubelet exchanges the file every hour; the certificate of the
cluster whenever a connection could not be made. Answers become values or our own errors, whose texts are short and clean. One
thread at a time.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import httpx
import msgspec

from csi.kubernetes.cluster import Cluster
from csi.redaction import clean
from fuse.errors import (
    Conflict,
    Forbidden,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
    WeightlessError,
)

_MERGE_PATCH: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"
_JSON: Final = "application/json"
_LIMIT_S: Final = 10.0
_MAX_SHOWN: Final = 300
_GRANT: Final = "grant it to the ServiceAccount of the node plugin (deploy/ has the roles), or turn off what needs it"


class ApiServer:
    def __init__(self, cluster: Cluster, limit_s: float = _LIMIT_S) -> None:
        self._cluster = cluster
        self._limit_s = limit_s
        self._client: httpx.Client | None = None

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path)

    def create(self, path: str, document: Mapping[str, Any]) -> None:
        self._ask("POST", path, document, _JSON)

    def merge(self, path: str, change: Mapping[str, Any]) -> None:
        self._ask("PATCH", path, change, _MERGE_PATCH)

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> None:
        """By a JSON patch (RFC 6902). A test in it that fails is InvalidRequest."""
        self._ask("PATCH", path, operations, _JSON_PATCH)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(self, method: str, path: str, content: object = None, kind: str = "") -> dict[str, Any]:
        """Raises Unavailable for what may succeed later, another WeightlessError for what will not."""
        headers = {"Authorization": f"Bearer {self._token()}", "Accept": _JSON}
        if content is not None:
            headers["Content-Type"] = kind
        body = None if content is None else msgspec.json.encode(content)
        try:
            answer = self._connected().request(method, self._cluster.url + path, content=body, headers=headers)
        except httpx.HTTPError as error:
            self.close()
            # The text of an httpx error may have the URL, never a header.
            raise Unavailable(f"cannot be asked: {clean(str(error))[:_MAX_SHOWN]}", where=self._where) from error
        if answer.is_success:
            return _document(answer.content)
        raise self._refusal(answer)

    @property
    def _where(self) -> str:
        return f"API server {self._cluster.url}"

    def _connected(self) -> httpx.Client:
        if self._client is None:
            try:
                trust = ssl.create_default_context(cafile=str(self._cluster.ca_file))
            except OSError as error:  # SSLError is one
                raise InvalidConfig("cannot be read as certificates", where=str(self._cluster.ca_file)) from error
            # The cluster's own address is behind no proxy, whatever the environment says of registries.
            self._client = httpx.Client(verify=trust, trust_env=False, timeout=self._limit_s)
        return self._client

    def _token(self) -> str:
        try:
            token = self._cluster.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(
                "the ServiceAccount's token cannot be read", where=str(self._cluster.token_file)
            ) from error
        if not token or not token.isascii() or not token.isprintable():
            raise Unavailable("holds no token", where=str(self._cluster.token_file))
        return token

    def _refusal(self, answer: httpx.Response) -> WeightlessError:
        said = clean(str(_document(answer.content).get("message", "")))[:_MAX_SHOWN]
        status = answer.status_code
        what = f"answers {status}{f': {said}' if said else ''}"
        if status == 429 or status >= 500:
            return Unavailable(what, where=self._where, answered=True)
        if status == 401:
            return Unauthenticated(what, where=self._where, fix="see that the pod's ServiceAccount exists")
        if status == 403:
            return Forbidden(what, where=self._where, fix=_GRANT)
        if status == 404:
            return NotFound(what, where=self._where)
        if status == 409:
            return Conflict(what, where=self._where, fix="look at it again")
        return InvalidRequest(what, where=self._where)


def _document(content: bytes) -> dict[str, Any]:
    found: object = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = msgspec.json.decode(content)
    return found if isinstance(found, dict) else {}
