"""The HTTP endpoint that Prometheus scrapes: GET /metrics, and nothing else.

As `prometheus_client.start_http_server` would do it, but for what a port that anybody on the network may connect to needs: few
threads, a time limit for each connection, no look-up of our own name in DNS, and an end. Without TLS and credentials: it shows
nothing that names a pod, a model or a registry.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, NamedTuple

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from fuse.errors import InvalidConfig

PATH: Final = "/metrics"
_MAX_CONNECTIONS: Final = 8
_CONNECTION_LIMIT_S: Final = 10.0
_STOP_POLL_S: Final = 0.1
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^:\s\[\]]*):(?P<port>[0-9]{1,5})")

_log = structlog.get_logger()


class Address(NamedTuple):
    host: str
    """Empty for all addresses of the machine."""
    port: int


def parse_address(text: str) -> Address:
    """`host:port`, `:port` or `[IPv6]:port`; port 0 takes a free one. Raises InvalidConfig."""
    match = _ADDRESS.fullmatch(text)
    port = int(match["port"]) if match else -1
    if match is None or not 0 <= port <= 65535:
        raise InvalidConfig(
            f"{text!r:.200} is not an address",
            where="metrics address",
            fix="give --metrics-address as host:port, :port or [IPv6]:port",
        )
    return Address(match["host"].strip("[]"), port)


class Exposition:
    """Serves a registry of collectors. `bind`, `serve`, `close`; the last one also without the others."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Raises InvalidConfig for what is not an address."""
        self._text = address
        self._address = parse_address(address)
        self._registry = registry
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def bind(self) -> None:
        """From now on connections wait; they are answered after `serve`. Raises InvalidConfig when it cannot be had."""
        host, port = self._address
        try:
            family, _, _, _, place = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(family, place, self._registry)
        except OSError as error:
            raise InvalidConfig(
                f"cannot be listened at: {error.strerror}",
                where=f"metrics address {self._text}",
                fix="give --metrics-address an address of this machine and a free port",
            ) from error

    def serve(self) -> None:
        server = self._server
        if server is None:
            return
        self._thread = threading.Thread(target=server.serve_forever, args=(_STOP_POLL_S,), name="metrics", daemon=True)
        self._thread.start()
        _log.info("metrics_served", address=self._text, port=server.server_address[1])

    def close(self) -> None:
        """Takes no more connections. Answers under way are not waited for."""
        server, self._server = self._server, None
        if server is None:
            return
        if self._thread is not None:
            server.shutdown()
            self._thread.join()
        server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, family: socket.AddressFamily, address: Any, registry: CollectorRegistry) -> None:
        self.address_family = family
        self.registry = registry
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up early is no news; a fault of a collector was logged."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CONNECTION_LIMIT_S
    server_version = "weightless"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._answer(404, "text/plain; charset=utf-8", f"see {PATH}\n".encode())
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            content = encode(self.server.registry)
        except Exception:  # noqa: BLE001  (a scrape that fails is to be seen as one, by whoever scrapes)
            _log.exception("metrics_failed")
            self._answer(500, "text/plain; charset=utf-8", b"see the log of the node plugin\n")
        else:
            self._answer(200, content_type, content)

    def _answer(self, status: int, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (named by http.server)
        """A scrape every few seconds is no news either."""
