"""Opening TCP connections under address rules: names are resolved here, and only addresses that were checked are dialled.

Both HTTP clients dial through one `Dialer`. Thread-safe; blocking, with a limit on each connection attempt (name resolution
has the system resolver's own).
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

import httpcore

from fuse.errors import Unavailable
from fuse.registry.addresses import AddressRule, Reach, reach_of

CONNECT_TIMEOUT_S: Final = 3.0
NO_ANSWER: Final = (
    "check host and port, that the registry runs, and what lies between: firewall, HTTP_PROXY, HTTPS_PROXY, NO_PROXY"
)
"""What to do when nobody answers."""
_MAX_REMEMBERED: Final = 1024


class Dialer:
    """Resolves, checks, connects, and remembers how far inside each host turned out to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reaches: OrderedDict[tuple[str, int], Reach] = OrderedDict()

    def reach(self, host: str, port: int) -> Reach:
        """The class of the address that was last dialled for a host; public when none was (a proxy resolves it)."""
        with self._lock:
            return self._reaches.get((host, port), Reach.PUBLIC)

    def addresses(self, host: str, port: int, rule: AddressRule) -> list[str]:
        """The addresses of `host` that may be dialled.

        Raises AddressRefused when there are only others, Unavailable when there are none.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else "not a valid name"
            raise Unavailable(
                f"the host name cannot be resolved: {reason}",
                where=host,
                fix="check the name, and the DNS of this machine",
            ) from None
        every = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [address for address in every if rule.allows(address)]
        if not allowed:
            raise rule.refusal(host, tuple(every))
        return allowed

    def connect(self, host: str, port: int, rule: AddressRule) -> socket.socket:
        """A connected socket with CONNECT_TIMEOUT_S as its timeout; the caller owns it."""
        failure: OSError | None = None
        for address in self.addresses(host, port, rule):
            try:
                sock = socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S)
            except OSError as error:
                failure = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.note(host, port, address)
            return sock
        raise Unavailable(f"cannot connect: {_reason(failure)}", where=f"{host}:{port}", fix=NO_ANSWER) from failure

    def note(self, host: str, port: int, address: str) -> None:
        with self._lock:
            self._reaches[host, port] = reach_of(address)
            self._reaches.move_to_end((host, port))
            if len(self._reaches) > _MAX_REMEMBERED:
                self._reaches.popitem(last=False)


class Patience(threading.local):
    """Until when (monotonic) the calling thread waits for the answer that it is reading, however often a byte of it comes."""

    until = math.inf


class RuledBackend(httpcore.NetworkBackend):
    """httpcore's view of a `Dialer` under one rule: it is handed addresses that were checked, never names."""

    def __init__(self, dialer: Dialer, rule: AddressRule, patience: Patience) -> None:
        self._dialer = dialer
        self._rule = rule
        self._patience = patience
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in self._dialer.addresses(host, port, self._rule):
            left = self._patience.until - time.monotonic()
            if left <= 0:  # a name may have many addresses that are all silent
                raise httpcore.ConnectTimeout
            limit = min(math.inf if timeout is None else timeout, left)
            try:
                stream = self._plain.connect_tcp(
                    address, port, None if limit == math.inf else limit, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            self._dialer.note(host, port, address)
            return _PatientStream(stream, self._patience)
        raise failure


class _PatientStream(httpcore.NetworkStream):
    """A connection whose reads end when the reader's patience does."""

    def __init__(self, stream: httpcore.NetworkStream, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._patience.until - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        return self._stream.read(max_bytes, min(math.inf if timeout is None else timeout, left))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _PatientStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._patience)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _reason(error: OSError | None) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    return (error.strerror if error is not None else None) or "failed"
