"""The one proxy policy of both HTTP clients: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY as Go reads them.

Registries are pulled by Go programs everywhere else (containerd, docker, kubelet), so an environment that works for them works
here: golang.org/x/net/http/httpproxy; ALL_PROXY is curl's addition. Immutable once made; safe from all threads.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from fuse.errors import InvalidConfig

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that speaks plain HTTP: CONNECT for https, absolute URLs for http."""

    host: str
    port: int
    authorization: str = ""
    """The value of Proxy-Authorization; empty for none."""

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self.url})"


class ProxyPolicy:
    """What the environment says about proxies, read once."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        everywhere = _first(environment, "ALL_PROXY")
        self._by_scheme = {
            "http": _first(environment, "HTTP_PROXY") or everywhere,
            "https": _first(environment, "HTTPS_PROXY") or everywhere,
        }
        self._exceptions = [
            entry.strip().lower() for entry in _first(environment, "NO_PROXY").split(",") if entry.strip()
        ]

    def url_for(self, url: str) -> str | None:
        """The proxy's URL for a request to `url`, with its user information; None to go straight."""
        parts = urlsplit(url)
        proxy = self._by_scheme.get(parts.scheme, "")
        host = (parts.hostname or "").rstrip(".")
        if not proxy or not host or self._is_exempt(host, parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def proxy_for(self, url: str) -> Proxy | None:
        """As `url_for`, parsed. Raises InvalidConfig for a proxy that is no plain HTTP proxy."""
        text = self.url_for(url)
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            port = parts.port or 80
        except ValueError:
            raise _unusable() from None
        if parts.scheme != "http" or not parts.hostname:
            raise _unusable()
        authorization = ""
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(user.encode()).decode()}"
        return Proxy(host=parts.hostname, port=port, authorization=authorization)

    def _is_exempt(self, host: str, port: int) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True  # as Go: a proxy's loopback is not ours
        return any(_matches(entry, host, port, address) for entry in self._exceptions)


def proxy_for(url: str) -> str | None:
    """The proxy that this process's environment names for `url`, or None."""
    return ProxyPolicy(os.environ).url_for(url)


def _first(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.lower()) or ""


def _unusable() -> InvalidConfig:
    return InvalidConfig(
        "the proxy of the environment is not usable",
        where="HTTP_PROXY, HTTPS_PROXY or ALL_PROXY",
        fix="give it as http://host:port; https and socks proxies are not supported",
    )


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _matches(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """One entry of NO_PROXY: `*`, an address, a CIDR range, `example.com` (and below), `.example.com` (below only); names and
    addresses may have a port."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name = entry
    if _address(entry) is None:
        head, colon, tail = entry.rpartition(":")
        if colon and tail.isdecimal():
            if int(tail) != port:
                return False
            name = head
    name = name.removeprefix("[").removesuffix("]")
    if (literal := _address(name)) is not None:
        return address == literal
    name = name.removeprefix("*")
    if name.startswith("."):
        return host.lower().endswith(name)
    return host.lower() == name or host.lower().endswith(f".{name}")
