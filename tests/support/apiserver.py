"""Kubernetes' API server, as much of it as the node plugin asks: TLS, tokens, events, a node and its CSINode, ServiceAccounts.

It checks what the real one checks of an event, and applies patches as the standards say. `faults` holds statuses for the next
requests; 0 hangs up at once.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

import trustme

from csi.kubernetes.cluster import Cluster

TOKEN = "canary-token-1"
_EVENTS = "/apis/events.k8s.io/v1/namespaces/"


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeApiServer:
    """A context manager; `cluster` is what the plugin is given."""

    LOSE_ANSWER: ClassVar = -1
    """A fault: the request is served, and nobody hears of it."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.token_file, ca_file = directory / "token", directory / "ca.crt"
        self.token_file.write_text(TOKEN)
        authority.cert_pem.write_to_path(str(ca_file))
        self.accepted = {TOKEN}
        self.events: dict[str, dict[str, Any]] = {}
        self.node: dict[str, Any] = {"metadata": {"name": "node-a"}, "spec": {}}
        self.drivers: list[str] = []
        self.accounts: dict[str, dict[str, str]] = {}
        """Annotations by namespace/name."""
        self.faults: deque[int] = deque()
        self.requests: list[tuple[str, str]] = []
        self.before_patch: list[Any] = []
        """Called, one for each patch of the node, before it is applied."""
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.cluster = Cluster(
            url=f"https://127.0.0.1:{self._server.server_address[1]}", token_file=self.token_file, ca_file=ca_file
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def told(self) -> list[tuple[str, str]]:
        """Reason and note of all events."""
        with self.lock:
            return [(event["reason"], event["note"]) for event in self.events.values()]

    def answer(self, method: str, path: str, kind: str, body: Any) -> dict[str, Any]:
        if path.startswith(_EVENTS):
            return self._event(method, path.removeprefix(_EVENTS), kind, body)
        if (method, path) == ("GET", "/apis/storage.k8s.io/v1/csinodes/node-a"):
            return {"spec": {"drivers": [{"name": name, "nodeID": "node-a"} for name in self.drivers]}}
        namespace, _, name = path.removeprefix("/api/v1/namespaces/").partition("/serviceaccounts/")
        if (account := f"{namespace}/{name}") in self.accounts:
            return {"kind": "ServiceAccount", "metadata": {"annotations": self.accounts[account]}}
        if path == "/api/v1/nodes/node-a" and method == "GET":
            return self.node
        if path == "/api/v1/nodes/node-a" and method == "PATCH" and kind == "application/json-patch+json":
            if self.before_patch:
                self.before_patch.pop(0)()
            changed = json.loads(json.dumps(self.node))
            for operation in body:
                _apply(changed["spec"]["taints"], operation)
            self.node = changed
            return self.node
        raise ApiError(404, f"{method} {path}: the server could not find the requested resource")

    def _event(self, method: str, place: str, kind: str, body: Any) -> dict[str, Any]:
        namespace, _, rest = place.partition("/")
        name = rest.removeprefix("events").strip("/")
        if method == "POST" and not name:
            _check_event(namespace, body)
            if body["metadata"]["name"] in self.events:
                raise ApiError(409, "already exists")
            self.events[body["metadata"]["name"]] = body
            return body
        if method == "PATCH" and kind == "application/merge-patch+json":
            if name not in self.events:
                raise ApiError(404, "not found")
            if body["series"]["count"] < 2 or "lastObservedTime" not in body["series"]:
                raise ApiError(422, "series is invalid")
            self.events[name] |= body
            return self.events[name]
        raise ApiError(405, "not allowed")


def _check_event(namespace: str, event: dict[str, Any]) -> None:
    """What the API server's validation asks of a new events.k8s.io/v1 Event."""
    wrong = [
        name
        for name, most in (
            ("reportingController", 253), ("reportingInstance", 128), ("action", 128), ("reason", 128), ("note", 1024),
        )
        if not 0 < len(event[name].encode()) <= most
    ]  # fmt: skip
    if event["type"] not in ("Normal", "Warning"):
        wrong.append("type")
    if not event["eventTime"].endswith("Z") or len(event["eventTime"]) != 27:
        wrong.append("eventTime")
    if {namespace} != {event["metadata"]["namespace"], event["regarding"]["namespace"]}:
        wrong.append("namespace")
    if wrong:
        raise ApiError(422, f"invalid: {wrong}")


def _apply(taints: list[Any], operation: dict[str, Any]) -> None:
    index = int(operation["path"].removeprefix("/spec/taints/"))
    if index >= len(taints):
        raise ApiError(422, "the path is not there")
    if operation["op"] == "test" and taints[index] != operation["value"]:
        raise ApiError(422, "the server rejected our request due to an error in our request")
    if operation["op"] == "remove":
        del taints[index]


class _Handler(BaseHTTPRequestHandler):
    api: ClassVar[FakeApiServer]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def _serve(self) -> None:
        api = self.api
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with api.lock:
            api.requests.append((self.command, self.path))
            fault = api.faults.popleft() if api.faults else None
            if fault == 0:
                self.close_connection = True
                return
            try:
                self._check(fault)
                body = json.loads(content) if content else None
                status, answer = 200, api.answer(self.command, self.path, self.headers.get("Content-Type", ""), body)
            except ApiError as error:
                status, answer = error.status, {"kind": "Status", "message": str(error), "code": error.status}
            text = json.dumps(answer).encode()
        if fault == FakeApiServer.LOSE_ANSWER:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _check(self, fault: int | None) -> None:
        if fault is not None and fault != FakeApiServer.LOSE_ANSWER:
            raise ApiError(fault, "so it was asked\x1b[31m for")
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.api.accepted:
            raise ApiError(401, "Unauthorized")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (named by http.server)
        """Not in the output of tests."""
