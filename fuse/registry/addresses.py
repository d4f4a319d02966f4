"""Which network addresses may be dialled: the wall between a reference that a pod's author wrote and the node's network.

Addresses are sorted into public, private and loopback. Rules are checked on the address that is dialled, after name
resolution, so a name that resolves anew to something else gains nothing. Pure values; safe from all threads.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fuse.errors import AddressRefused

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SHARED: Final = ipaddress.IPv4Network("100.64.0.0/10")  # carrier-grade NAT, RFC 6598: what cloud networks use inside
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's wire server
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::23",  # AWS, credentials of EKS pods
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
        "fd00:42::42",  # Scaleway
    )
)  # the others (169.254.169.254, 169.254.170.2, …) are link-local


class Reach(IntEnum):
    """How far inside an address lies; larger is more internal."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    NEVER = 3
    """Link-local, multicast, unspecified, reserved, and the metadata services of clouds."""


@dataclass(frozen=True, slots=True)
class AddressRule:
    """The most internal class that may be dialled. `NEVER` as innermost means any address at all: the administrator named
    the host."""

    innermost: Reach

    def allows(self, address: str) -> bool:
        return self.innermost is Reach.NEVER or reach_of(address) <= self.innermost

    def check_literal(self, host: str) -> None:
        """Raises AddressRefused when `host` is an address (not a name) that the rule forbids."""
        if is_literal(host) and not self.allows(host):
            raise self.refusal(host, (host,))

    def refusal(self, host: str, addresses: tuple[str, ...]) -> AddressRefused:
        kind = reach_of(addresses[0])
        names = {Reach.PUBLIC: "a public", Reach.PRIVATE: "a private", Reach.LOOPBACK: "a loopback"}
        shown = "" if addresses == (host,) else f" ({', '.join(addresses[:3])})"
        return AddressRefused(
            f"{names.get(kind, 'a link-local or reserved')} address may not be reached from here{shown}",
            where=host,
            fix="an administrator can allow this host by naming it in hosts.toml",
        )


ANY_ADDRESS: Final = AddressRule(Reach.NEVER)


def is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def reach_of(address: str) -> Reach:
    """The class of an IP address in text. Addresses that carry another inside (mapped, NAT64, 6to4) count as that one."""
    ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if ip in _METADATA or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return Reach.NEVER
    if ip.is_loopback:
        return Reach.LOOPBACK
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return Reach.PRIVATE
    if ip.is_reserved or (isinstance(ip, ipaddress.IPv4Address) and ip in ipaddress.IPv4Network("0.0.0.0/8")):
        return Reach.NEVER
    if ip.is_private or (isinstance(ip, ipaddress.IPv4Address) and ip in _SHARED):
        return Reach.PRIVATE
    return Reach.PUBLIC


def _unwrapped(ip: _Address) -> _Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip in _NAT64 or (int(ip) >> 32 == 0 and int(ip) > 1):  # ::a.b.c.d, deprecated and still parsed by kernels
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
