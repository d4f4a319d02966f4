"""Basic and Bearer credentials against a registry with its own token service, and where tokens may come from."""

from __future__ import annotations

import threading
import time

import pytest

from fuse.artifact.digest import Digest
from fuse.errors import AddressRefused, Forbidden, Unauthenticated, Unavailable
from fuse.registry import auth, repository
from fuse.registry.access import Credential
from fuse.registry.challenge import Challenge, parse_challenges
from fuse.registry.transport import Transport
from tests.fuse.registry.conftest import REPOSITORY, Authority, endpoint_of, repository_at
from tests.support.registry import FaultyRegistry, Tokens

MANIFEST = b'{"schemaVersion": 2}'
BLOB = bytes(range(256)) * 64
USER = Credential(username="user", password="p\u00e4ss:word")


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_backoff", lambda _state: 0.01)


def filled(registry: FaultyRegistry) -> FaultyRegistry:
    registry.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])
    registry.add_blob(BLOB)
    return registry


def read(repo: repository.Repository, first: int, length: int) -> bytes:
    with repo.open_blob(Digest.of(BLOB), len(BLOB), first, length) as stream:
        content = bytearray(length)
        stream.readinto(memoryview(content))
        return bytes(content)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push"',
            [Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x/y:pull,push"})],
        ),
        (
            'Basic realm="x, \\"y\\"", BEARER Realm=https://a/t , service = "s"',
            [
                Challenge("basic", {"realm": 'x, "y"'}),
                Challenge("bearer", {"realm": "https://a/t", "service": "s"}),
            ],
        ),
        ("Negotiate, Basic", [Challenge("negotiate"), Challenge("basic")]),
        ("", []),
        ('="', []),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[Challenge]) -> None:
    """Several challenges, quoted commas and loose spacing, as RFC 9110 allows."""
    assert expected == parse_challenges(header)


def test_basic_credentials_are_sent_once_asked_for(transport: Transport) -> None:
    """The first request is anonymous, later ones are not."""
    with filled(FaultyRegistry(basic={USER.username: USER.password})) as registry:
        repo = repository_at(transport, endpoint_of(registry, credential=USER))

        assert MANIFEST == repo.manifest("v1").content
        assert BLOB[:10] == read(repo, 0, 10)

        assert [401, 200, 206] == [entry.status for entry in registry.requests()]


def test_anonymous_tokens_are_fetched(transport: Transport) -> None:
    """A public repository of a token registry needs no credential."""
    with filled(FaultyRegistry(tokens=Tokens(anonymous=True))) as registry:
        assert MANIFEST == repository_at(transport, endpoint_of(registry)).manifest("v1").content

        query = registry.requests("token")[0].request.query
        assert {"service": "test-registry", "scope": f"repository:{REPOSITORY}:pull"} == query


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("repository:proxy/tiny:pull", "repository:proxy/tiny:pull"),
        ("repository:tiny:pull,push,delete", "repository:tiny:pull"),
        ("repository:tiny:metadata_read,pull registry:catalog:*", "repository:tiny:metadata_read,pull"),
        ("repository:tiny:*", f"repository:{REPOSITORY}:pull"),
        ("nonsense", f"repository:{REPOSITORY}:pull"),
        ("", f"repository:{REPOSITORY}:pull"),
    ],
)
def test_a_token_for_reading_may_do_nothing_else(transport: Transport, asked: str, sent: str) -> None:
    """Whatever the challenge asks for: what we hold for a registry is worth as little as possible to who steals it."""
    with filled(FaultyRegistry(tokens=Tokens(anonymous=True))) as registry:
        authorizer = transport.authorizer(endpoint_of(registry), REPOSITORY, "registry.test")
        conversation = repository_at(transport, endpoint_of(registry))._conversations[0]
        challenge = f'Bearer realm="{registry.url}/token",service="s",scope="{asked}"'
        authorizer.answer(challenge, "", conversation._routes.realm)

        assert sent == registry.requests("token")[0].request.query["scope"]


def test_one_token_serves_manifests_and_blobs_of_all_threads(transport: Transport) -> None:
    """Many threads that need a token at the same moment cause one token request."""
    tokens = Tokens(users={USER.username: USER.password}, delay_s=0.1)
    with filled(FaultyRegistry(tokens=tokens)) as registry:
        repo = repository_at(transport, endpoint_of(registry, credential=USER))
        repo.manifest("v1")
        in_threads(8, lambda: read(repo, 0, 10))
        assert 1 == tokens.issued

        registry.revoke_tokens()
        in_threads(8, lambda: read(repo, 0, 10))
        assert 2 == tokens.issued


def test_a_token_is_renewed_before_it_ends(transport: Transport) -> None:
    """No request is sent with a token that is about to end."""
    tokens = Tokens(users={USER.username: USER.password}, expires_in_s=1)
    with filled(FaultyRegistry(tokens=tokens)) as registry:
        repo = repository_at(transport, endpoint_of(registry, credential=USER))
        repo.manifest("v1")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            read(repo, 0, 10)

        assert 2 <= tokens.issued <= 4
        assert [401] == [entry.status for entry in registry.requests() if entry.status == 401]


def test_a_token_without_expiry_is_good_for_60_s(transport: Transport) -> None:
    """The default of the token specification."""
    with filled(FaultyRegistry(tokens=Tokens(anonymous=True, expires_in_s=None))) as registry:
        repo = repository_at(transport, endpoint_of(registry))
        repo.manifest("v1")
        authorizer = repo._conversations[0]._authorizer

        assert 50 < authorizer._renew_at - time.monotonic() <= 60


def test_a_failing_renewal_does_not_stop_a_token_that_is_still_good(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token service may be away for a moment."""
    with filled(FaultyRegistry(tokens=Tokens(anonymous=True, expires_in_s=300))) as registry:
        repo = repository_at(transport, endpoint_of(registry))
        repo.manifest("v1")
        repo._conversations[0]._authorizer._renew_at = 0.0
        registry.script("token", "503", forever=True)

        assert BLOB[:10] == read(repo, 0, 10)


def test_an_identity_token_is_exchanged(transport: Transport) -> None:
    """OAuth2 POST with the refresh token, which is not in the URL."""
    tokens = Tokens(refresh_tokens={"refresh-me"})
    with filled(FaultyRegistry(tokens=tokens)) as registry:
        credential = Credential(identity_token="refresh-me")
        assert MANIFEST == repository_at(transport, endpoint_of(registry, credential=credential)).manifest("v1").content
        assert "POST" == registry.requests("token")[0].request.method
        assert {} == registry.requests("token")[0].request.query

        wrong = Credential(identity_token="refuse-me")
        with pytest.raises(Unauthenticated):
            repository_at(transport, endpoint_of(registry, credential=wrong)).manifest("v1")


def test_a_registry_token_is_sent_as_it_is(transport: Transport) -> None:
    """No token service is asked; a refusal is final."""
    tokens = Tokens()
    with filled(FaultyRegistry(tokens=tokens)) as registry:
        tokens.valid["given"] = time.monotonic() + 100
        good, bad = Credential(registry_token="given"), Credential(registry_token="other")

        assert MANIFEST == repository_at(transport, endpoint_of(registry, credential=good)).manifest("v1").content
        with pytest.raises(Unauthenticated):
            repository_at(transport, endpoint_of(registry, credential=bad)).manifest("v1")
        assert not registry.requests("token")


def test_credentials_do_not_share_tokens(transport: Transport) -> None:
    """What one tenant may pull is no right of another, in the same process and at the same repository."""
    tokens = Tokens(users={USER.username: USER.password})
    with filled(FaultyRegistry(tokens=tokens)) as registry:
        repository_at(transport, endpoint_of(registry, credential=USER)).manifest("v1")

        with pytest.raises(Unauthenticated):
            repository_at(transport, endpoint_of(registry)).manifest("v1")
        other = Credential(username=USER.username, password="guess")
        with pytest.raises(Unauthenticated):
            repository_at(transport, endpoint_of(registry, credential=other)).exists(Digest.of(MANIFEST))


@pytest.mark.parametrize(("status", "expected"), [("403", Forbidden), ("500", Unavailable), ("404", Unauthenticated)])
def test_a_token_service_that_says_no(transport: Transport, status: str, expected: type[Exception]) -> None:
    """Its answers become the errors that their causes are."""
    with filled(FaultyRegistry(tokens=Tokens(anonymous=True))) as registry:
        registry.script("token", status, forever=True)

        with pytest.raises(expected):
            read(repository_at(transport, endpoint_of(registry)), 0, 10)


def test_a_token_with_a_line_break_is_refused(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write a header of the token service's choice."""
    monkeypatch.setattr("tests.support.registry.secrets.token_hex", lambda _n: "a\r\nX-Evil: 1")
    with filled(FaultyRegistry(tokens=Tokens(anonymous=True))) as registry, pytest.raises(Unavailable, match="usable"):
        read(repository_at(transport, endpoint_of(registry)), 0, 10)


def test_a_token_answer_has_a_limit(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token service cannot fill our memory."""
    monkeypatch.setattr(auth, "_MAX_TOKEN_ANSWER_BYTES", 10)
    with (
        filled(FaultyRegistry(tokens=Tokens(anonymous=True))) as registry,
        pytest.raises(Unavailable, match="not a token"),
    ):
        read(repository_at(transport, endpoint_of(registry)), 0, 10)


# ---- where the token service may be (GHSA-xf85-363p-868w) ----


def test_an_http_realm_of_an_https_registry_is_refused(transport: Transport, authority: Authority) -> None:
    """The password would travel in the clear: nobody is asked."""
    with (
        FaultyRegistry(tokens=Tokens(users={USER.username: USER.password})) as service,
        filled(FaultyRegistry(tls=authority.server, tokens=Tokens(realm=f"{service.url}/token"))) as registry,
    ):
        endpoint = endpoint_of(registry, credential=USER, ca_pems=(authority.pem,))
        with pytest.raises(AddressRefused, match="plain http"):
            repository_at(transport, endpoint).manifest("v1")
        assert not service.requests()


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/latest",
        "http://[fd00:ec2::254]/token",
        "http://0.0.0.0:80/",
        "http://[::ffff:169.254.169.254]/",
    ],
)
def test_a_realm_at_a_metadata_address_is_refused(transport: Transport, realm: str) -> None:
    """Whoever the registry is, named or not."""
    with filled(FaultyRegistry(tokens=Tokens(realm=realm))) as registry, pytest.raises(AddressRefused):
        repository_at(transport, endpoint_of(registry, credential=USER)).manifest("v1")


def test_a_realm_with_a_name_that_is_none_is_a_failure_of_the_registry(transport: Transport) -> None:
    """And none of ours: the library that builds the request has its own opinion of names."""
    with filled(FaultyRegistry(tokens=Tokens(realm="http://xn--/"))) as registry, pytest.raises(Unavailable):
        repository_at(transport, endpoint_of(registry, credential=USER)).manifest("v1")


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "https://user:pw@elsewhere/", "not a url", "https://", "//x"])
def test_a_realm_that_is_no_plain_url_is_refused(transport: Transport, realm: str) -> None:
    """Nothing is sent."""
    with filled(FaultyRegistry(tokens=Tokens(realm=realm))) as registry, pytest.raises(Unavailable, match="no URL"):
        read(repository_at(transport, endpoint_of(registry, credential=USER)), 0, 10)


def in_threads(count: int, work: object) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
