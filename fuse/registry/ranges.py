"""The client for blobs: `http.client`, reading into the caller's buffers over persistent connections.

A connection belongs to a *lane*: what one thread does at a time. A lane has at most one idle connection to each origin, so
transfers never wait for a pool, and no lock is held while bytes move. `RangeClient` is thread-safe; a reply belongs to one
thread, except that `abort` may be called from any.
"""

from __future__ import annotations

import fcntl
import http.client
import io
import select
import socket
import ssl
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from fuse.errors import Unavailable
from fuse.registry.addresses import ANY_ADDRESS, AddressRule
from fuse.registry.dial import Dialer
from fuse.registry.proxies import Proxy, ProxyPolicy
from fuse.registry.reply import TooLarge
from fuse.registry.route import Route
from fuse.registry.tls import TlsContexts, Trust

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

HEADER_TIMEOUT_S: Final = 10.0
MIRROR_HEADER_TIMEOUT_S: Final = 5.0
"""For the head of a mirror's answer: a reader waits meanwhile, and the next host may have it."""
BODY_TIMEOUT_S: Final = 5.0
PACE_WINDOW_S: Final = 5.0
PACE_BYTES: Final = 1024
"""Fewer bytes in a window of waiting are as good as none: a server that drips must not hold a connection for ever."""
_SMALL_BYTES: Final = 4096
_IDLE_LIMIT_S: Final = 60.0
_DRAIN_BYTES: Final = 64 * 1024
"""An unread rest of this size costs less to read than a new connection."""

_Key: TypeAlias = tuple[tuple[str, str, int], AddressRule, Trust, Proxy | None]


class _Paced(io.RawIOBase):
    """What comes from a socket, as long as it comes at a pace. Time that the reader spends elsewhere does not count."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._readinto: Callable[[Buffer], int | None] = raw.readinto
        self._waited_s = 0.0
        self._got = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        began = time.monotonic()
        count = self._readinto(buffer)
        if count is None or count >= _SMALL_BYTES:
            self._waited_s, self._got = 0.0, 0
            return count
        self._waited_s += time.monotonic() - began
        self._got += count
        if self._waited_s >= PACE_WINDOW_S and count:
            if self._got < PACE_BYTES:
                raise TimeoutError(f"{self._got} bytes in {self._waited_s:.0f} s")
            self._waited_s, self._got = 0.0, 0
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Reads through `_Paced`; otherwise http.client's."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.fp.close()
        self.fp = io.BufferedReader(_Paced(sock.makefile("rb", buffering=0)))


class _Connection(http.client.HTTPConnection):
    """One connection to an origin, through a proxy or not, dialled by our rules."""

    response_class = _Response

    def __init__(self, route: Route, proxy: Proxy | None, dialer: Dialer, context: ssl.SSLContext | None) -> None:
        super().__init__(route.host, route.port)
        self._route = route
        self._proxy = proxy
        self._dialer = dialer
        self._context = context
        self.idle_since = 0.0
        self.wire: socket.socket | None = None
        """The socket. `sock` forgets it when a response that ends the connection begins; its body still comes through here."""

    def connect(self) -> None:
        route, proxy = self._route, self._proxy
        if proxy is None:
            sock = self._dialer.connect(route.host, route.port, route.rule)
        else:
            sock = self._dialer.connect(proxy.host, proxy.port, ANY_ADDRESS)
        try:
            sock.settimeout(_patience_s(route))
            if proxy is not None and self._context is not None:
                _open_tunnel(sock, route, proxy)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=route.host)
        except BaseException:
            sock.close()
            raise
        self.sock = self.wire = sock

    def is_fresh(self) -> bool:
        """Whether an idle connection may be used again: a readable one has been closed by the other side."""
        if self.sock is None or time.monotonic() - self.idle_since > _IDLE_LIMIT_S:
            return False
        poller = select.poll()
        poller.register(self.sock, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poller.poll(0)


class RangeReply:
    """A `Reply` of http.client, with `readinto`."""

    def __init__(
        self,
        client: RangeClient,
        lane: object,
        key: _Key,
        connection: _Connection,
        response: http.client.HTTPResponse,
    ) -> None:
        self._client = client
        self._lane = lane
        self._key = key
        self._connection: _Connection | None = connection
        self._response = response
        self._where = connection.host

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str:
        return self._response.getheader(name, "") or ""

    @property
    def content_length(self) -> int | None:
        """What is left of the body, None if it is not known beforehand."""
        return self._response.length

    def readinto(self, view: memoryview) -> int:
        """The next bytes; 0 at the end. Raises Unavailable when none comes for BODY_TIMEOUT_S or the body breaks off."""
        left = self._response.length
        try:
            count = self._response.readinto(view)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            raise _unavailable(error, self._where, f"no byte for {BODY_TIMEOUT_S:g} s") from error
        if not count and left and view:
            self._drop()
            raise Unavailable("the connection was closed early", where=self._where)
        return count

    def waiting_bytes(self) -> int:
        """How many bytes the socket holds that were not read yet; 0 where the kernel does not say."""
        connection = self._connection
        if connection is None or connection.wire is None:
            return 0
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(connection.wire, termios.FIONREAD, bytes(4)), sys.byteorder)
        return 0

    def read(self, limit_bytes: int) -> bytes:
        if (self._response.length or 0) > limit_bytes:
            raise TooLarge
        content = bytearray(limit_bytes + 1)
        view = memoryview(content)
        filled = 0
        while filled < len(content) and (count := self.readinto(view[filled:])):
            filled += count
        if filled > limit_bytes:
            raise TooLarge
        return bytes(view[:filled])

    def abort(self) -> None:
        """Wakes a thread that is blocked in `readinto`, which then raises Unavailable. Callable from any thread."""
        connection = self._connection
        sock = connection.wire if connection is not None else None
        if sock is not None:
            with suppress(OSError):
                # Of the plain socket: SSLSocket.shutdown drops its TLS state under the reader's feet.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Keeps the connection for the lane if the body was read to its end, or nearly."""
        connection = self._connection
        if connection is None:
            return
        left = self._response.length
        if left and left <= _DRAIN_BYTES and not self._response.isclosed():
            with suppress(Unavailable):
                while self.readinto(memoryview(bytearray(left))):
                    pass
        if self._connection is None:
            return
        if not self._response.isclosed() or self._response.will_close:
            self._drop()
            return
        self._connection = None
        self._client.keep(self._lane, self._key, connection)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._response.close()
            connection.close()


class RangeClient:
    """Sends GETs for blobs; follows nothing."""

    def __init__(self, dialer: Dialer, contexts: TlsContexts, proxies: ProxyPolicy, user_agent: str) -> None:
        self._dialer = dialer
        self._contexts = contexts
        self._proxies = proxies
        self._user_agent = user_agent
        self._lock = threading.Lock()
        self._idle: dict[object, dict[_Key, _Connection]] = {}
        self._closed = False

    def send(self, route: Route, headers: Mapping[str, str], lane: object) -> RangeReply:
        """Raises Unavailable when no answer comes, AddressRefused when the rules forbid to ask."""
        route.rule.check_literal(route.host)
        proxy = self._proxies.proxy_for(route.url)
        key = (route.origin, route.rule, route.trust, proxy)
        connection = self._take(lane, key)
        if connection is not None:
            try:
                return self._ask(connection, key, route, headers, lane)
            except Unavailable as error:
                # The other side may close an idle connection at any moment: that says nothing about its health.
                if isinstance(error.__cause__, TimeoutError):
                    raise
        context = self._contexts.context(route.trust) if route.scheme == "https" else None
        return self._ask(_Connection(route, proxy, self._dialer, context), key, route, headers, lane)

    def _ask(
        self, connection: _Connection, key: _Key, route: Route, headers: Mapping[str, str], lane: object
    ) -> RangeReply:
        proxy = key[3]
        try:
            if connection.wire is not None:
                connection.wire.settimeout(_patience_s(route))
            target = route.url if proxy is not None and route.scheme == "http" else route.target
            connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
            for name, value in self._headers(route, proxy, headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            if connection.wire is not None:
                connection.wire.settimeout(BODY_TIMEOUT_S)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError | http.client.HTTPException | ValueError):
                raise _unavailable(error, route.authority, f"no answer within {_patience_s(route):g} s") from error
            raise
        return RangeReply(self, lane, key, connection, response)

    def _headers(self, route: Route, proxy: Proxy | None, headers: Mapping[str, str]) -> dict[str, str]:
        every = {"Host": route.authority, "User-Agent": self._user_agent, "Accept": "*/*"}
        every["Accept-Encoding"] = "identity"
        if proxy is not None and proxy.authorization and route.scheme == "http":
            every["Proxy-Authorization"] = proxy.authorization
        return every | dict(headers)

    def _take(self, lane: object, key: _Key) -> _Connection | None:
        with self._lock:
            connection = self._idle.get(lane, {}).pop(key, None)
        if connection is not None and not connection.is_fresh():
            connection.close()
            return None
        return connection

    def keep(self, lane: object, key: _Key, connection: _Connection) -> None:
        """For replies: puts a connection back. What has been idle for long in this lane is closed on the way."""
        now = connection.idle_since = time.monotonic()
        with self._lock:
            mine = self._idle.setdefault(lane, {})
            stale = [mine.pop(other) for other in list(mine) if now - mine[other].idle_since > _IDLE_LIMIT_S]
            if (replaced := mine.pop(key, None)) is not None:
                stale.append(replaced)
            if self._closed:
                stale.append(connection)
            else:
                mine[key] = connection
        for old in stale:
            old.close()

    def close_lane(self, lane: object) -> None:
        """Closes the idle connections of a lane that is used no more."""
        with self._lock:
            connections = self._idle.pop(lane, {})
        for connection in connections.values():
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            lanes, self._idle = list(self._idle.values()), {}
        for connections in lanes:
            for connection in connections.values():
                connection.close()


def _patience_s(route: Route) -> float:
    """How long no byte of an answer's head may come."""
    return MIRROR_HEADER_TIMEOUT_S if route.brief else HEADER_TIMEOUT_S


def _open_tunnel(sock: socket.socket, route: Route, proxy: Proxy) -> None:
    host = f"[{route.host}]" if ":" in route.host else route.host
    lines = [f"CONNECT {host}:{route.port} HTTP/1.1", f"Host: {host}:{route.port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    response = http.client.HTTPResponse(sock, method="CONNECT")
    try:
        response.begin()
    finally:
        response.close()
    if response.status != 200:
        raise Unavailable(f"the proxy answers {response.status} to CONNECT {host}", where=proxy.url)


def _unavailable(error: Exception, where: str, silence: str) -> Unavailable:
    fix = ""
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"the TLS certificate is not trusted: {error.verify_message}"
        fix = "name the authority's certificate as `ca` in the host's hosts.toml"
    elif isinstance(error, TimeoutError):
        what = silence if str(error) in ("", "timed out") else f"it hardly sends anything: {error}"
    elif isinstance(error, ssl.SSLError):
        what = f"TLS failed: {error.reason or 'protocol error'}"
    elif isinstance(error, OSError | http.client.RemoteDisconnected):
        what = f"the connection broke: {error.strerror or 'closed by the other side'}"
    else:
        what = "the answer is not HTTP"
    return Unavailable(what, where=where, fix=fix)
