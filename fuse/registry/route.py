"""Where a request goes and under which rules: URLs, address rules and TLS trust of an endpoint and of what it points to.

A route to anywhere else than the endpoint carries none of its secrets; the caller adds headers by asking `Route.same_origin`.
Pure values, except that `Routes` asks the dialer how far inside the endpoint turned out to lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from fuse.errors import AddressRefused, Unavailable
from fuse.registry.access import Access, Endpoint
from fuse.registry.addresses import ANY_ADDRESS, AddressRule, Reach, is_literal, reach_of
from fuse.registry.tls import Trust

_PORTS: Final = {"http": 80, "https": 443}
_URL_SAFE: Final = "!#$%&'()*+,/:;=?@[]~-._"
_MAX_URL: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An absolute URL, taken apart, with the rules for getting there."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""
    rule: AddressRule
    trust: Trust
    brief: bool = False
    """Somebody else can be asked (it is a mirror's): an answer that does not begin soon is not waited for."""

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def same_origin(self, other: Route) -> bool:
        """Scheme, host and port: any difference makes it somebody else (GHSA-vh4v-2xq2-g5cg)."""
        return self.origin == other.origin


class Routes:
    """The ways to one endpoint and to where it points (redirects, token services)."""

    def __init__(self, access: Access, endpoint: Endpoint, reach: Callable[[str, int], Reach]) -> None:
        self._access = access
        self._endpoint = endpoint
        self._reach = reach
        self._trust = Trust.of(endpoint)
        inner = AddressRule(Reach.LOOPBACK if access.local_allowed else Reach.PRIVATE)
        rule = ANY_ADDRESS if endpoint.named else inner
        self._brief = not endpoint.origin
        self._base = self._route(endpoint.url, rule, self._trust)

    @property
    def authority(self) -> str:
        return self._base.authority

    def own(self, path: str) -> Route:
        """`path` is appended to the endpoint's URL and starts with a slash."""
        return self._route(self._endpoint.url + path, self._base.rule, self._trust)

    def redirected(self, current: Route, location: str) -> Route:
        """Raises AddressRefused where the rules forbid it, Unavailable for what is no URL."""
        return self._elsewhere(location, "a redirect", current.url)

    def realm(self, url: str) -> Route:
        """The token service. Raises as `redirected`."""
        return self._elsewhere(url, "a token service")

    def _elsewhere(self, url: str, what: str, seen_from: str = "") -> Route:
        base = self._base
        try:
            route = self._route(urljoin(seen_from, url), base.rule, self._trust)
        except ValueError:
            raise Unavailable(f"{what} leads to something that is no URL", where=base.authority) from None
        if route.same_origin(base):
            return route
        named = any(
            endpoint.named and _route(endpoint.url, ANY_ADDRESS, self._trust).same_origin(route)
            for endpoint in self._access.endpoints
        )
        if named:
            return replace(route, rule=ANY_ADDRESS, trust=self._trust.elsewhere())
        if base.scheme == "https" and route.scheme == "http":
            # Ranges are only as good as the TLS they came through, and a token request holds a password.
            raise AddressRefused(
                f"{what} of an https registry leads to plain http",
                where=f"{base.authority} → {route.authority}",
                fix="let the registry point to https",
            )
        reach = reach_of(base.host) if is_literal(base.host) else self._reach(base.host, base.port)
        rule = AddressRule(min(reach, Reach.LOOPBACK))
        rule.check_literal(route.host)
        return replace(route, rule=rule, trust=self._trust.elsewhere())

    def _route(self, url: str, rule: AddressRule, trust: Trust) -> Route:
        return replace(_route(url, rule, trust), brief=self._brief)


def _route(url: str, rule: AddressRule, trust: Trust) -> Route:
    """Raises ValueError for anything but an http(s) URL with a host and without user information."""
    parts = urlsplit(url)
    host = parts.hostname
    if len(url) > _MAX_URL or parts.scheme not in _PORTS or not host or "@" in parts.netloc:
        raise ValueError("not an http URL")
    if not host.isascii():
        host = host.encode("idna").decode()
    if any(character <= " " or character in "/\\?#" for character in host):
        raise ValueError("not a host")
    target = quote(parts.path or "/", safe=_URL_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_URL_SAFE)
    return Route(
        scheme=parts.scheme, host=host, port=parts.port or _PORTS[parts.scheme], target=target, rule=rule, trust=trust
    )
