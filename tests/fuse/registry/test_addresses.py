"""The address rules: as values, and as connections that are or are not made."""

from __future__ import annotations

import socket
import time
from typing import Any

import httpcore
import pytest

from fuse.artifact.digest import Digest
from fuse.errors import AddressRefused, WeightlessError
from fuse.registry import repository
from fuse.registry.access import Endpoint
from fuse.registry.addresses import ANY_ADDRESS, AddressRule, Reach, reach_of
from fuse.registry.dial import Dialer, Patience, RuledBackend
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.fuse.registry.conftest import REPOSITORY, endpoint_of, repository_at
from tests.support.registry import FaultyRegistry, Tokens
from weightless.demo.registry import Request, Response

BLOB = b"x" * 1000


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_backoff", lambda _state: 0.01)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", Reach.PUBLIC),
        ("2606:4700::1", Reach.PUBLIC),
        ("10.1.2.3", Reach.PRIVATE),
        ("172.31.0.1", Reach.PRIVATE),
        ("192.168.0.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd12::1", Reach.PRIVATE),
        ("127.0.0.1", Reach.LOOPBACK),
        ("127.9.9.9", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("64:ff9b::7f00:1", Reach.LOOPBACK),
        ("::ffff:10.0.0.1", Reach.PRIVATE),
        ("169.254.169.254", Reach.NEVER),
        ("::ffff:169.254.169.254", Reach.NEVER),
        ("64:ff9b::a9fe:a9fe", Reach.NEVER),
        ("2002:a9fe:a9fe::", Reach.NEVER),
        ("::169.254.169.254", Reach.NEVER),
        ("fd00:ec2::254", Reach.NEVER),
        ("100.100.100.200", Reach.NEVER),
        ("168.63.129.16", Reach.NEVER),
        ("fe80::1", Reach.NEVER),
        ("fe80::1%eth0", Reach.NEVER),
        ("224.0.0.1", Reach.NEVER),
        ("ff02::1", Reach.NEVER),
        ("0.0.0.0", Reach.NEVER),
        ("0.1.2.3", Reach.NEVER),
        ("::", Reach.NEVER),
        ("255.255.255.255", Reach.NEVER),
        ("240.0.0.1", Reach.NEVER),
    ],
)
def test_addresses_are_sorted(address: str, expected: Reach) -> None:
    """Also those that hide another address inside."""
    assert expected == reach_of(address)


def test_rules_let_in_what_is_less_internal() -> None:
    """Public < private < loopback; never is never, except for a host that was named."""
    private = AddressRule(Reach.PRIVATE)

    assert [True, True, False, False] == [
        private.allows(a) for a in ("8.8.8.8", "10.0.0.1", "127.0.0.1", "169.254.1.1")
    ]
    assert AddressRule(Reach.LOOPBACK).allows("127.0.0.1")
    assert not AddressRule(Reach.LOOPBACK).allows("169.254.169.254")
    assert ANY_ADDRESS.allows("169.254.169.254")


def attempt_both(repo: Repository) -> list[type[WeightlessError]]:
    """What a manifest and a blob, so both clients, end with."""
    outcomes: list[type[WeightlessError]] = []
    for call in (lambda: repo.manifest("v1"), lambda: repo.open_blob(Digest.of(BLOB), len(BLOB), 0, 10).close()):
        try:
            call()
        except WeightlessError as error:
            outcomes.append(type(error))
    return outcomes


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a socket tries to connect to."""
    seen: list[Any] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        seen.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "0.0.0.0", "2130706433"])
def test_an_unnamed_host_inside_is_refused_and_not_dialled(
    transport: Transport, no_connections: list[Any], host: str
) -> None:
    """Loopback, metadata and their spellings: AddressRefused from both clients, and no connection is tried."""
    with FaultyRegistry() as registry:
        repo = repository_at(transport, Endpoint(url=f"http://{host}:{registry.port}/v2", origin=True))

        assert [AddressRefused, AddressRefused] == attempt_both(repo)
        assert [] == no_connections
        assert not registry.requests()


@pytest.mark.parametrize("how", ["named", "local_allowed"])
def test_loopback_is_reached_when_named_or_allowed(transport: Transport, how: str) -> None:
    """An administrator's file, or a command on a laptop."""
    with FaultyRegistry() as registry:
        registry.add_manifest(REPOSITORY, b"{}", tags=["v1"])
        registry.add_blob(BLOB)
        endpoint = endpoint_of(registry, named=how == "named")

        assert [] == attempt_both(repository_at(transport, endpoint, local_allowed=how == "local_allowed"))


def resolving(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[list[str]]]) -> None:
    """Makes names resolve to these addresses, a list for each time they are asked for (the last one stays)."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        found = answers.get(host)
        if found is None:
            return real(host, port, *args, **kwargs)
        addresses = found[0] if len(found) == 1 else found.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_is_judged_by_the_address_that_is_dialled(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, no_connections: list[Any]
) -> None:
    """A public-looking name that leads inside is refused, whenever it does (DNS rebinding)."""
    resolving(monkeypatch, {"rebinding.test": [["127.0.0.1"]]})
    with FaultyRegistry() as registry:
        repo = repository_at(transport, Endpoint(url=f"http://rebinding.test:{registry.port}/v2", origin=True))

        assert [AddressRefused, AddressRefused] == attempt_both(repo)
        assert [] == no_connections


def test_a_name_of_many_silent_addresses_is_dialled_for_as_long_as_an_answer_may_take(
    monkeypatch: pytest.MonkeyPatch, no_connections: list[Any]
) -> None:
    """And not for that long at each of them."""
    resolving(monkeypatch, {"many.test": [["127.0.0.1", "127.0.0.2"]]})
    patience = Patience()
    patience.until = time.monotonic() - 1
    with pytest.raises(httpcore.ConnectTimeout):
        RuledBackend(Dialer(), ANY_ADDRESS, patience).connect_tcp("many.test", 1, 3.0)
    assert [] == no_connections


def test_only_the_allowed_addresses_of_a_name_are_dialled(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, no_connections: list[Any]
) -> None:
    """A name with an address inside and one outside: the one inside is passed over."""
    resolving(monkeypatch, {"both.test": [["169.254.169.254", "127.0.0.1"]]})
    with FaultyRegistry() as registry:
        registry.add_manifest(REPOSITORY, b"{}", tags=["v1"])
        registry.add_blob(BLOB)
        endpoint = Endpoint(url=f"http://both.test:{registry.port}/v2", origin=True)

        assert [] == attempt_both(repository_at(transport, endpoint, local_allowed=True))
        assert {("127.0.0.1", registry.port)} == set(no_connections)


def pointing(registry: FaultyRegistry, location: str) -> None:
    """Makes every blob request a redirect to `location`."""
    real = registry.answer

    def answer(request: Request) -> Response:
        if "/blobs/" in request.path:
            return Response(status=307, headers={"Location": location})
        return real(request)

    registry.answer = answer  # type: ignore[method-assign]


def believed(monkeypatch: pytest.MonkeyPatch, reach: Reach) -> None:
    """Makes the test's registry, on loopback, count as one that was dialled at an address of that class."""
    monkeypatch.setattr("fuse.registry.route.is_literal", lambda _host: False)
    monkeypatch.setattr(Dialer, "reach", lambda _self, _host, _port: reach)


def test_a_redirect_further_inside_is_refused(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, no_connections: list[Any]
) -> None:
    """A registry on a private address may not send us to loopback or to metadata; from loopback, loopback is no further."""
    digest = Digest.of(BLOB)
    with FaultyRegistry() as store, FaultyRegistry() as registry:
        store.add_blob(BLOB)
        repo = repository_at(transport, endpoint_of(registry))
        target = f"{store.url}/v2/x/blobs/{digest}"
        pointing(registry, target)
        repo.open_blob(digest, len(BLOB), 0, len(BLOB)).close()
        assert 1 == len(store.requests())

        # The same registry, believed to lie on a public or private address.
        for reach in (Reach.PUBLIC, Reach.PRIVATE):
            believed(monkeypatch, reach)
            repo = repository_at(transport, endpoint_of(registry))
            transport.redirects.forget(next(iter(transport.redirects._known), None))
            with pytest.raises(AddressRefused):
                repo.open_blob(digest, len(BLOB), 0, len(BLOB))
        assert 1 == len(store.requests())

        for location in ("http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/"):
            pointing(registry, location)
            no_connections.clear()
            with pytest.raises(AddressRefused):
                repo.open_blob(digest, len(BLOB), 0, len(BLOB))
            assert "169.254.169.254" not in str(no_connections)


def test_a_redirect_to_a_named_host_is_allowed(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that the administrator lists is not further inside, wherever it is."""
    with FaultyRegistry() as store, FaultyRegistry() as registry:
        store.add_blob(BLOB)
        pointing(registry, f"{store.url}/v2/x/blobs/{Digest.of(BLOB)}")
        push_only = endpoint_of(store, origin=False, capabilities=("push",))
        believed(monkeypatch, Reach.PUBLIC)

        repo = repository_at(transport, push_only, endpoint_of(registry))
        repo.open_blob(Digest.of(BLOB), len(BLOB), 0, len(BLOB)).close()

        assert 1 == len(store.requests())


def test_a_connection_made_for_a_named_host_serves_no_other(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools are kept apart by rule: a warm connection to a named host inside is no way around the rules."""
    resolving(monkeypatch, {"inner.test": [["127.0.0.1"]]})
    with FaultyRegistry() as inner:
        inner.add_manifest(REPOSITORY, b"{}", tags=["v1"])
        inner.add_blob(BLOB)
        url = f"http://inner.test:{inner.port}/v2"
        assert [] == attempt_both(repository_at(transport, Endpoint(url=url, origin=True, named=True)))
        asked = len(inner.requests())

        assert [AddressRefused, AddressRefused] == attempt_both(
            repository_at(transport, Endpoint(url=url, origin=True))
        )
        assert asked == len(inner.requests())


def test_a_realm_further_inside_is_refused(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token service is judged as a redirect is, by the address its name leads to."""
    resolving(monkeypatch, {"auth.test": [["127.0.0.1"]]})
    believed(monkeypatch, Reach.PUBLIC)
    with FaultyRegistry(tokens=Tokens(anonymous=True)) as service, FaultyRegistry(tokens=Tokens()) as registry:
        assert registry.tokens is not None
        registry.tokens.realm = f"http://auth.test:{service.port}/token"

        assert [AddressRefused, AddressRefused] == attempt_both(repository_at(transport, endpoint_of(registry)))
        assert not service.requests()
