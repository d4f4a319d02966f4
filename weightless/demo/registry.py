"""A small read-only registry (OCI distribution-spec, pull only) for the demonstration, tests and benchmarks.

It serves manifests by tag and digest, and ranges of blobs, at a limited rate if wanted, and counts what it served. One thread a
connection; state is guarded by one lock. Blobs belong to the registry, not to a repository. It is no server for production: it
keeps every manifest in memory and knows no push.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from fuse.artifact.digest import Digest
from weightless.demo.sources import BlobSource, BytesSource, FileSource, digest_of, pieces

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<target>[^/]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_LIMITED_PIECE_BYTES: Final = 64 * 1024
_MADE_UP_S: Final = 0.01
"""How much of what a sleep was too long for is made up: without it one connection never reaches a high rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the registry saw it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes
    client: tuple[str, int]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass(slots=True, kw_only=True)
class Response:
    """What to answer. `length` is what Content-Length promises; `pieces` is what is sent."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    length: int = 0
    pieces: Iterable[bytes] = ()
    blob: str = ""
    """The digest whose bytes these are, for the counters."""
    close: bool = False
    """End the connection afterwards."""

    @classmethod
    def of(cls, status: int, content: bytes, media_type: str, headers: dict[str, str] | None = None) -> Response:
        return cls(
            status=status,
            headers={"Content-Type": media_type, **(headers or {})},
            length=len(content),
            pieces=[content] if content else [],
        )

    @classmethod
    def error(cls, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
        content = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        return cls.of(status, content, "application/json", headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What was served since the start or the last `reset_statistics`."""

    requests: int
    bytes_sent: int
    """Of blobs; manifests are not counted."""
    requests_by_blob: dict[str, int]
    bytes_by_blob: dict[str, int]


class RateLimit:
    """A rate that all connections share. `bytes_per_s` None means none."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Waits until `count` bytes may be sent."""
        rate = self.bytes_per_s
        if rate is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now - _MADE_UP_S, self._free_at)
            self._free_at = start + count / rate
        time.sleep(max(0.0, start - now))


class ModelRegistry:
    """The registry. Use it as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        rate_bytes_per_s: float | None = None,
    ) -> None:
        self._bind = (host, port)
        self._tls = tls
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._blobs: dict[str, BlobSource] = {}
        self._requests = 0
        self._blob_requests: Counter[str] = Counter()
        self._blob_bytes: Counter[str] = Counter()
        self.rate = RateLimit(rate_bytes_per_s)

    # ---- life ----

    def start(self) -> Self:
        self._server = _Server(self._bind, self, self._tls)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="registry", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends all connections and waits for their threads. May be called twice."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        self._thread.join()
        server.end_connections()
        server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that was bound; the number stays known after `stop`."""
        if self._server is not None:
            self._bind = (self._bind[0], self._server.server_address[1])
        return self._bind[1]

    @property
    def host(self) -> str:
        """`host:port`, as it stands in a reference."""
        return f"{self._bind[0]}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def end_connections(self) -> None:
        """Cuts every connection that is open now, as a restart of a proxy would."""
        if self._server is not None:
            self._server.end_connections()

    # ---- content ----

    def add_blob(self, content: bytes | Path | BlobSource, *, digest: Digest | None = None) -> Digest:
        """Serves a blob. Its digest is computed unless given (a synthetic terabyte cannot be hashed; a lying one is wanted)."""
        source: BlobSource
        if isinstance(content, bytes):
            source = BytesSource(content)
        elif isinstance(content, Path):
            source = FileSource(content)
        else:
            source = content
        digest = digest or digest_of(source)
        with self._lock:
            self._blobs[str(digest)] = source
        return digest

    def add_manifest(
        self, repository: str, content: bytes, *, media_type: str = MANIFEST_TYPE, tags: Sequence[str] = ()
    ) -> Digest:
        """Serves a manifest or index by its digest and `tags`; a tag that exists is moved."""
        digest = Digest.of(content)
        with self._lock:
            for target in (str(digest), *tags):
                self._manifests[repository, target] = (content, media_type)
        return digest

    def remove_blob(self, digest: Digest) -> None:
        with self._lock:
            del self._blobs[str(digest)]

    def remove_manifest(self, repository: str, target: str) -> None:
        with self._lock:
            del self._manifests[repository, target]

    def statistics(self) -> Statistics:
        with self._lock:
            return Statistics(
                requests=self._requests,
                bytes_sent=self._blob_bytes.total(),
                requests_by_blob=dict(self._blob_requests),
                bytes_by_blob=dict(self._blob_bytes),
            )

    def reset_statistics(self) -> None:
        with self._lock:
            self._requests = 0
            self._blob_requests.clear()
            self._blob_bytes.clear()

    # ---- answering; a subclass may wrap these ----

    def answer(self, request: Request) -> Response:
        """The answer to one request, from any thread."""
        if request.method not in ("GET", "HEAD"):
            return Response.error(405, "UNSUPPORTED", "this registry is read-only")
        if request.path in ("/v2", "/v2/"):
            return Response.of(200, b"{}", "application/json")
        match = _PATH.fullmatch(request.path)
        if match is None:
            return Response.error(404, "NAME_UNKNOWN", "no such path")
        if match["kind"] == "manifests":
            return self._manifest(match["repository"], match["target"])
        return self.blob(match["target"], request)

    def _manifest(self, repository: str, target: str) -> Response:
        with self._lock:
            found = self._manifests.get((repository, target))
            known = any(name == repository for name, _ in self._manifests)
        if found is None:
            code = "MANIFEST_UNKNOWN" if known else "NAME_UNKNOWN"
            return Response.error(404, code, "manifest unknown" if known else "repository name not known to registry")
        content, media_type = found
        return Response.of(200, content, media_type, {"Docker-Content-Digest": str(Digest.of(content))})

    def blob(self, digest: str, request: Request) -> Response:
        """A blob or the one range of it that was asked for."""
        with self._lock:
            source = self._blobs.get(digest)
        if source is None:
            return Response.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        first, length, status = 0, source.size, 200
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "Accept-Ranges": "bytes",
        }
        match = _RANGE.fullmatch(request.range)
        if match is not None:
            first = int(match[1])
            last = min(int(match[2]) if match[2] else source.size - 1, source.size - 1)
            if first > last:
                headers = {"Content-Range": f"bytes */{source.size}"}
                return Response.error(416, "RANGE_INVALID", "the range lies outside the blob", headers)
            length, status = last - first + 1, 206
            headers["Content-Range"] = f"bytes {first}-{last}/{source.size}"
        return Response(
            status=status, headers=headers, length=length, pieces=self._pieces(source, first, length), blob=digest
        )

    def _pieces(self, source: BlobSource, offset: int, length: int) -> Iterator[bytes]:
        if self.rate.bytes_per_s is None:
            yield from pieces(source, offset, length)
            return
        for piece in pieces(source, offset, length, _LIMITED_PIECE_BYTES):
            self.rate.take(len(piece))
            yield piece

    def finished(self, request: Request, response: Response) -> None:
        """Called when an answer was sent or given up; for logs of subclasses."""

    def count_request(self, response: Response) -> None:
        with self._lock:
            self._requests += 1
            if response.blob:
                self._blob_requests[response.blob] += 1

    def count_bytes(self, response: Response, count: int) -> None:
        if response.blob:
            with self._lock:
                self._blob_bytes[response.blob] += count


class _Server(ThreadingHTTPServer):
    """Knows its connections and their threads, so that stopping leaves none behind."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], registry: ModelRegistry, tls: ssl.SSLContext | None) -> None:
        self.registry = registry
        self._tls = tls
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._connections_lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind asks DNS for the host's full name, which may take seconds and is used by nobody here.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # it may be started again at the same address
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = self.socket.accept()
        if self._tls is not None:
            # The handshake is left to the connection's own thread: a silent client must not hold up the others.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="registry-connection", daemon=True
        )
        with self._connections_lock:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are the client's business: nothing is printed."""

    def end_connections(self) -> None:
        with self._connections_lock:
            connections = dict(self._connections)
        for connection in connections:
            with suppress(OSError):
                # Of the plain socket: SSLSocket.shutdown would forget its TLS state under the feet of its own thread.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(parts.path),
            query={name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()},
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            client=(str(self.client_address[0]), int(self.client_address[1])),
        )
        registry = self.server.registry
        response = registry.answer(request)
        registry.count_request(response)
        try:
            self._send(registry, response)
        finally:
            registry.finished(request, response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815 - http.server's names

    def _send(self, registry: ModelRegistry, response: Response) -> None:
        self.close_connection = self.close_connection or response.close
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(response.length))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for piece in response.pieces:
            self.connection.sendall(piece)
            sent += len(piece)
            registry.count_bytes(response, len(piece))
        if sent < response.length:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Silent: the counters say what was served."""
