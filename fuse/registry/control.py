"""The client for what is small: manifests, configs, tokens, HEAD. httpx, over connection pools that dial by our rules.

Each pool belongs to one address rule, one TLS trust and one proxy: a connection that was opened because an administrator
named its host is never reused for a request that a stranger's redirect sends to the same address. Thread-safe.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, TypeAlias, cast

import httpcore
import httpx

from fuse.errors import Unavailable
from fuse.registry.addresses import ANY_ADDRESS, AddressRule
from fuse.registry.dial import CONNECT_TIMEOUT_S, NO_ANSWER, Dialer, Patience, RuledBackend
from fuse.registry.proxies import Proxy, ProxyPolicy
from fuse.registry.reply import TooLarge
from fuse.registry.route import Route
from fuse.registry.tls import TlsContexts, Trust

READ_TIMEOUT_S: Final = 10.0
ANSWER_LIMIT_S: Final = 20.0
"""For the head of an answer, however often a byte of it comes."""
MIRROR_ANSWER_LIMIT_S: Final = 5.0
"""The same of a mirror: the next host can be asked."""
BODY_GRACE_S: Final = 15.0
BODY_PACE_BYTES_PER_S: Final = 64 * 1024
"""A body has the grace, and then must have come at this pace; the largest that is read here is a manifest of 4 MiB."""
_MAX_POOLS: Final = 32
_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")
_BROKEN: Final = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.ConnectionNotAvailable,
    httpcore.UnsupportedProtocol,
)

_PoolKey: TypeAlias = tuple[AddressRule, Trust, Proxy | None]


class ControlReply:
    """A `Reply` of httpx."""

    def __init__(self, response: httpx.Response, where: str, patience: Patience) -> None:
        self._response = response
        self._patience = patience
        self._where = where

    @property
    def status(self) -> int:
        return self._response.status_code

    def header(self, name: str) -> str:
        return str(self._response.headers.get(name, ""))

    def read(self, limit_bytes: int) -> bytes:
        content = bytearray()
        began = time.monotonic()
        self._patience.until = began + BODY_GRACE_S + limit_bytes / BODY_PACE_BYTES_PER_S
        try:
            # Raw: no Content-Encoding is accepted, and a digest is of the bytes as they came.
            for chunk in self._response.iter_raw():
                content += chunk
                if len(content) > limit_bytes:
                    raise TooLarge
                late_s = time.monotonic() - began - BODY_GRACE_S
                if late_s > len(content) / BODY_PACE_BYTES_PER_S:
                    # A server that drips would hold this thread, and a publish's place, for as long as it likes.
                    raise Unavailable(f"the answer comes too slowly ({len(content)} bytes so far)", where=self._where)
        except _BROKEN as error:
            raise _unavailable(error, self._where, ANSWER_LIMIT_S) from error
        except httpx.StreamError:
            return b""  # read before
        finally:
            self._patience.until = math.inf
        return bytes(content)

    def close(self) -> None:
        self._response.close()


class ControlClient:
    """Sends one request at a time per thread; follows nothing, remembers nothing."""

    def __init__(self, dialer: Dialer, contexts: TlsContexts, proxies: ProxyPolicy, user_agent: str) -> None:
        # No cookies: a jar would carry what one tenant's registry set into another tenant's requests.
        self._patience = Patience()
        jar = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
        self._client = httpx.Client(
            transport=_Pools(dialer, contexts, proxies, self._patience),
            headers={"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            cookies=jar,
            trust_env=False,
            follow_redirects=False,
        )

    def send(self, route: Route, method: str, headers: Mapping[str, str], content: bytes | None = None) -> ControlReply:
        """Raises Unavailable when no answer comes, AddressRefused when the rules forbid to ask."""
        route.rule.check_literal(route.host)
        # httpx would normalise the URL and break signatures: it gets the origin, the pools take all from the route.
        url = f"{route.scheme}://{route.authority}/"
        limit_s = MIRROR_ANSWER_LIMIT_S if route.brief else ANSWER_LIMIT_S
        self._patience.until = time.monotonic() + limit_s
        try:
            request = self._client.build_request(
                method, url, headers=dict(headers), content=content, extensions={"weightless_route": route}
            )
            response = self._client.send(request, stream=True)
        except _BROKEN as error:
            raise _unavailable(error, route.authority, limit_s) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # The last is of names that are none (IDNAError), and of headers.
            raise Unavailable(f"cannot ask: {type(error).__name__}", where=route.authority) from error
        finally:
            self._patience.until = math.inf
        return ControlReply(response, route.authority, self._patience)

    def close(self) -> None:
        self._client.close()


class _Pools(httpx.BaseTransport):
    def __init__(self, dialer: Dialer, contexts: TlsContexts, proxies: ProxyPolicy, patience: Patience) -> None:
        self._dialer = dialer
        self._contexts = contexts
        self._proxies = proxies
        self._patience = patience
        self._lock = threading.Lock()
        self._pools: OrderedDict[_PoolKey, httpcore.ConnectionPool] = OrderedDict()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        route: Route = request.extensions["weightless_route"]
        response = self._pool(route).handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=route.scheme.encode(),
                    host=route.host.encode(),
                    port=route.port,
                    target=route.target.encode(),
                ),
                headers=request.headers.raw,
                content=cast("httpx.SyncByteStream", request.stream),
                extensions={"timeout": request.extensions["timeout"]},
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def _pool(self, route: Route) -> httpcore.ConnectionPool:
        proxy = self._proxies.proxy_for(route.url)
        key = (route.rule, route.trust, proxy)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._make(*key)
                if len(self._pools) > _MAX_POOLS:
                    # Dropped, not closed: others may be reading from it; its sockets go with their last reader.
                    self._pools.popitem(last=False)
            else:
                self._pools.move_to_end(key)
            return pool

    def _make(self, rule: AddressRule, trust: Trust, proxy: Proxy | None) -> httpcore.ConnectionPool:
        context = self._contexts.context(trust)
        if proxy is None:
            return httpcore.ConnectionPool(
                ssl_context=context,
                max_connections=32,
                max_keepalive_connections=8,
                keepalive_expiry=30.0,
                network_backend=RuledBackend(self._dialer, rule, self._patience),
            )
        # The proxy's own address is the administrator's choice. It resolves names; literals were checked before.
        authorization = proxy.authorization.encode()
        return httpcore.HTTPProxy(
            proxy.url,
            proxy_headers=[(b"Proxy-Authorization", authorization)] if authorization else [],
            ssl_context=context,
            max_connections=32,
            max_keepalive_connections=8,
            keepalive_expiry=30.0,
            network_backend=RuledBackend(self._dialer, ANY_ADDRESS, self._patience),
        )

    def close(self) -> None:
        with self._lock:
            pools, self._pools = list(self._pools.values()), OrderedDict()
        for pool in pools:
            pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


def _unavailable(error: Exception, where: str, limit_s: float) -> Unavailable:
    fix = ""
    if isinstance(error, httpcore.ConnectTimeout):
        what, fix = f"cannot connect: no answer within {CONNECT_TIMEOUT_S:g} s", NO_ANSWER
    elif isinstance(error, httpcore.TimeoutException):
        what = f"no whole answer within {min(READ_TIMEOUT_S, limit_s):g} to {limit_s:g} s"
    elif isinstance(error, httpcore.ConnectError):
        what, fix = f"cannot connect: {_ERRNO.sub('', str(error))}", NO_ANSWER
        if "CERTIFICATE_VERIFY_FAILED" in what:
            what = "cannot connect: the TLS certificate is not trusted"
            fix = "name the authority's certificate as `ca` in the host's hosts.toml"
        elif "WRONG_VERSION_NUMBER" in what or "record layer failure" in what:
            what = "cannot connect: the other side does not speak TLS"
            fix = "a registry without TLS must be named so (hosts.toml or --plain-http)"
    else:
        what = f"the connection broke: {error}" if str(error) else "the connection broke"
    return Unavailable(what, where=where, fix=fix)
