"""A transport without proxies, access values for test registries, and TLS with an authority of the test's own."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trustme

from fuse.artifact.reference import Reference
from fuse.registry.access import Access, Credential, Endpoint
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from weightless.demo.registry import ModelRegistry

REPOSITORY = "models/tiny"


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(environment={}) as transport:
        yield transport


def endpoint_of(
    registry: ModelRegistry,
    *,
    origin: bool = True,
    named: bool = True,
    credential: Credential | None = None,
    **more: object,
) -> Endpoint:
    return Endpoint(url=f"{registry.url}/v2", origin=origin, named=named, credential=credential, **more)  # type: ignore[arg-type]


def access_of(*endpoints: Endpoint, local_allowed: bool = False) -> Access:
    return Access(registry="registry.test", endpoints=endpoints, local_allowed=local_allowed)


def repository_at(transport: Transport, *endpoints: Endpoint, name: str = REPOSITORY, **access: bool) -> Repository:
    reference = Reference.parse(f"registry.test/{name}:v1")
    return Repository(reference, access_of(*endpoints, **access), transport)


@dataclass(frozen=True)
class Authority:
    """A certificate authority, a server context for 127.0.0.1 and localhost, and the authority's PEM text."""

    ca: trustme.CA
    server: ssl.SSLContext
    pem: str


@pytest.fixture(scope="session")
def authority() -> Authority:
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "127.0.0.2", "localhost", "registry.test").configure_cert(server)
    return Authority(ca=ca, server=server, pem=ca.cert_pem.bytes().decode())
