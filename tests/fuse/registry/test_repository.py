"""Manifests, small blobs and ranges against a real HTTP server with faults."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.errors import (
    Cancelled,
    Corrupt,
    Forbidden,
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from fuse.registry import control, ranges, repository
from fuse.registry.access import Access, Credential, Endpoint
from fuse.registry.reply import clean, failure
from fuse.registry.repository import MAX_MANIFEST_BYTES, Repository
from fuse.registry.transport import Transport
from tests.fuse.registry.conftest import REPOSITORY, endpoint_of, repository_at
from tests.support.registry import FaultyRegistry
from weightless.demo.registry import Request, Response

MANIFEST = json.dumps({"schemaVersion": 2, "layers": []}).encode()
BLOB = os.urandom(3 * 1024 * 1024 + 17)
DIGEST = Digest.of(BLOB)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_backoff", lambda _state: 0.01)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])
        registry.add_blob(BLOB)
        yield registry


@pytest.fixture
def repo(transport: Transport, registry: FaultyRegistry) -> Repository:
    return repository_at(transport, endpoint_of(registry))


def read(repo: Repository, first: int, length: int, *, size: int = len(BLOB), lane: object = None) -> bytes:
    """The bytes that were asked for, however the server sends them."""
    with repo.open_blob(DIGEST, size, first, length, lane=lane) as stream:
        content = bytearray(stream.length)
        filled = 0
        while count := stream.readinto(memoryview(content)[filled:]):
            filled += count
        assert filled == stream.length
        return bytes(content[first - stream.start : first - stream.start + length])


# ---- manifests ----


def test_a_tag_gives_content_type_and_digest(repo: Repository, registry: FaultyRegistry) -> None:
    """What comes back is what the registry holds, and all four media types were offered."""
    manifest = repo.manifest("v1")

    assert (MANIFEST, "application/vnd.oci.image.manifest.v1+json", Digest.of(MANIFEST)) == (
        manifest.content,
        manifest.media_type,
        manifest.digest,
    )
    accepted = registry.requests("manifest")[0].request.headers["accept"]
    assert "oci.image.index" in accepted
    assert "manifest.list.v2+json" in accepted


def test_a_pinned_manifest_that_differs_is_corrupt(repo: Repository, registry: FaultyRegistry) -> None:
    """The digest in the reference is compared with the bytes, not with a header."""
    wrong = Digest.of(b"something else")
    registry._manifests[REPOSITORY, str(wrong)] = (MANIFEST, "application/json")

    with pytest.raises(Corrupt):
        repo.manifest(str(wrong))
    with pytest.raises(Corrupt):
        repo.manifest("v1", expected=wrong)


def test_a_lying_content_digest_header_is_corrupt(repo: Repository, registry: FaultyRegistry) -> None:
    """Docker-Content-Digest, when it is there, must be that of the content."""
    registry.script("manifest", "corrupt", forever=True)

    with pytest.raises(Corrupt):
        repo.manifest("v1")


def test_a_manifest_over_4_mib_is_refused_without_reading_it_all(repo: Repository, registry: FaultyRegistry) -> None:
    """The limit holds for what is read, whatever Content-Length says."""
    registry.add_manifest(REPOSITORY, b" " * (MAX_MANIFEST_BYTES + 1), tags=["huge"])

    with pytest.raises(InvalidArtifact, match="4 MiB"):
        repo.manifest("huge")


def test_a_missing_tag_says_what_the_registry_says(repo: Repository) -> None:
    """The registry's own code and message reach the reader."""
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN") as caught:
        repo.manifest("nope")

    assert f"registry.test/{REPOSITORY}:nope" == caught.value.where


def test_temporary_failures_are_tried_three_times(repo: Repository, registry: FaultyRegistry) -> None:
    """Two failures are survived, three are not."""
    registry.script("manifest", "503 429;0 ok")
    assert MANIFEST == repo.manifest("v1").content

    registry.script("manifest", "503 500 502 ok")
    with pytest.raises(Unavailable, match="502"):
        repo.manifest("v1")


def test_retry_after_is_waited_for(repo: Repository, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is at least what the registry asks for, at most 30 s."""
    pauses: list[float] = []
    event = threading.Event()
    monkeypatch.setattr(event, "wait", lambda timeout: pauses.append(timeout))  # noqa: PLW0108 - by keyword
    registry.script("manifest", "429;7 429;4000 ok")

    repo.manifest("v1", cancel=event)

    assert [7.0, 30.0] == pauses


def test_permanent_failures_are_not_repeated(repo: Repository, registry: FaultyRegistry) -> None:
    """404 and 403 are answers, not accidents."""
    registry.denied.add(REPOSITORY)

    with pytest.raises(Forbidden, match="DENIED"):
        repo.manifest("v1")

    assert 1 == len(registry.requests("manifest"))


def test_cancelling_ends_the_wait_between_tries(repo: Repository, registry: FaultyRegistry) -> None:
    """A set event is noticed before the next try."""
    cancel = threading.Event()
    registry.script("manifest", "503;20", forever=True)
    timer = threading.Timer(0.1, cancel.set)
    timer.start()

    with pytest.raises(Cancelled):
        repo.manifest("v1", cancel=cancel)
    timer.join()


def test_the_proof_asks_for_nothing_but_the_head(repo: Repository, registry: FaultyRegistry) -> None:
    """`exists` sends one HEAD and raises what a GET would."""
    repo.exists(Digest.of(MANIFEST))
    with pytest.raises(NotFound):
        repo.exists(DIGEST)

    assert ["HEAD", "HEAD"] == [entry.request.method for entry in registry.requests()]


def test_the_proof_falls_back_to_get(repo: Repository, registry: FaultyRegistry) -> None:
    """A registry that knows no HEAD for manifests is asked with GET."""
    registry.script("manifest", "405 ok")

    repo.exists(Digest.of(MANIFEST))

    assert ["HEAD", "GET"] == [entry.request.method for entry in registry.requests()]


def test_an_unknown_host_is_named(transport: Transport) -> None:
    """The error says which name could not be resolved."""
    repo = repository_at(transport, Endpoint(url="https://no-such-host.invalid/v2", origin=True))

    with pytest.raises(Unavailable, match=r"no-such-host\.invalid"):
        repo.manifest("v1")


def test_a_refused_connection_is_unavailable(transport: Transport) -> None:
    """Nobody listens: temporary, and it says where."""
    with FaultyRegistry() as gone:
        endpoint = endpoint_of(gone)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        repository_at(transport, endpoint).manifest("v1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        read(repository_at(transport, endpoint), 0, 10)


# ---- small blobs ----


def test_small_blobs_are_verified(repo: Repository, registry: FaultyRegistry) -> None:
    """Right bytes come back; wrong ones, or another length than promised, are corrupt."""
    digest = registry.add_blob(b"{}")
    assert b"{}" == repo.small_blob(digest, 2, limit=100)

    with pytest.raises(Corrupt):
        repo.small_blob(digest, 1, limit=100)
    with pytest.raises(Corrupt):
        repo.small_blob(digest, 3, limit=100)
    registry.script("blob", "corrupt", forever=True)
    with pytest.raises(Corrupt):
        repo.small_blob(digest, 2, limit=100)
    with pytest.raises(InvalidArtifact):
        repo.small_blob(digest, 101, limit=100)


# ---- ranges ----


@pytest.mark.parametrize(("first", "length"), [(0, 1), (5, 1024 * 1024), (len(BLOB) - 1, 1), (0, len(BLOB))])
def test_a_range_gives_its_bytes(repo: Repository, first: int, length: int) -> None:
    """Any range, also the whole."""
    assert BLOB[first : first + length] == read(repo, first, length)


def test_an_empty_blob_can_be_read(repo: Repository, registry: FaultyRegistry) -> None:
    """A blob of no bytes is asked for whole."""
    digest = registry.add_blob(b"")
    with repo.open_blob(digest, 0, 0, 0) as stream:
        assert 0 == stream.readinto(memoryview(bytearray(10)))


def test_a_range_outside_the_blob_is_a_mistake_of_the_caller(repo: Repository) -> None:
    """It is never sent."""
    with pytest.raises(ValueError, match="not within"):
        repo.open_blob(DIGEST, len(BLOB), len(BLOB), 1)


def test_the_whole_blob_is_asked_for_without_a_range(repo: Repository, registry: FaultyRegistry) -> None:
    """What peer-to-peer proxies serve best."""
    read(repo, 0, len(BLOB))

    assert "" == registry.requests("blob")[0].request.range


def test_a_server_without_ranges_streams_from_the_start(repo: Repository, registry: FaultyRegistry) -> None:
    """`start` tells the caller that the whole blob comes."""
    registry.script("blob", "no-range")
    with repo.open_blob(DIGEST, len(BLOB), 1000, 50) as stream:
        assert (0, len(BLOB)) == (stream.start, stream.length)

    registry.script("blob", "no-range")
    assert BLOB[1000:1050] == read(repo, 1000, 50)


@pytest.mark.parametrize("fault", ["wrong-range", "late-range", "extra"])
def test_another_range_than_asked_for_is_not_used(repo: Repository, registry: FaultyRegistry, fault: str) -> None:
    """Its bytes would land at the wrong place of the file."""
    registry.script("blob", fault)

    with pytest.raises(Unavailable, match="were asked for"):
        read(repo, 10, 100)


def test_a_blob_of_another_size_than_promised_is_corrupt(repo: Repository, registry: FaultyRegistry) -> None:
    """Whether the manifest says more or less than there is."""
    for size in (len(BLOB) - 1, len(BLOB) + 1):
        with pytest.raises(Corrupt, match="the manifest says"):
            read(repo, 0, 100, size=size)
        with pytest.raises(Corrupt, match="the manifest says"):
            read(repo, 0, size, size=size)
    with pytest.raises(Corrupt, match="shorter"):
        read(repo, len(BLOB), 1, size=len(BLOB) + 1)


def test_a_body_that_breaks_off_gives_what_came_and_then_fails(repo: Repository, registry: FaultyRegistry) -> None:
    """No byte is invented, none that came is withheld."""
    registry.script("blob", "cut@4096")
    content = bytearray(10_000)
    with repo.open_blob(DIGEST, len(BLOB), 0, 10_000) as stream:
        assert 4096 == stream.readinto(memoryview(content))
        assert BLOB[:4096] == content[:4096]
        with pytest.raises(Unavailable, match="closed early"):
            stream.readinto(memoryview(content))


def test_a_stalled_body_fails_after_its_time_limit(
    repo: Repository, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte for that long is a failure of the source."""
    monkeypatch.setattr(ranges, "BODY_TIMEOUT_S", 0.2)
    registry.script("blob", "stall@4096")

    with pytest.raises(Unavailable, match="no byte for"):
        read(repo, 0, 10_000)


def test_a_silent_server_fails_after_its_time_limit(
    repo: Repository, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No header for that long, too."""
    monkeypatch.setattr(ranges, "HEADER_TIMEOUT_S", 0.2)
    registry.script("blob", "hang")

    with pytest.raises(Unavailable, match="no answer within"):
        read(repo, 0, 10_000)


def test_abort_wakes_a_blocked_reader(repo: Repository, registry: FaultyRegistry) -> None:
    """From another thread, at once."""
    registry.script("blob", "stall@10")
    with repo.open_blob(DIGEST, len(BLOB), 0, 10_000) as stream:
        timer = threading.Timer(0.1, stream.abort)
        timer.start()
        stream.readinto(memoryview(bytearray(10)))
        with pytest.raises(Unavailable):
            stream.readinto(memoryview(bytearray(10_000)))
        timer.join()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("404", NotFound), ("403", Forbidden), ("500", Unavailable), ("429;9", Unavailable), ("408", Unavailable)],
)
def test_a_status_becomes_its_error(
    repo: Repository, registry: FaultyRegistry, fault: str, expected: type[Exception]
) -> None:
    """One try, no pause: the caller has its own patience."""
    registry.script("blob", fault)

    with pytest.raises(expected) as caught:
        read(repo, 0, 10)

    assert 1 == len(registry.requests("blob"))
    if fault == "429;9":
        assert isinstance(caught.value, Unavailable)
        assert 9.0 == caught.value.retry_after_s


# ---- connections ----


def test_a_lane_keeps_its_connection(repo: Repository, registry: FaultyRegistry) -> None:
    """Requests of one lane share a connection; another lane has its own."""
    for _ in range(3):
        read(repo, 0, 1000, lane="a")
    read(repo, 0, 1000, lane="b")

    clients = [entry.request.client for entry in registry.requests("blob")]
    assert 1 == len(set(clients[:3]))
    assert clients[3] != clients[0]


def test_a_connection_with_unread_bytes_is_not_used_again(repo: Repository, registry: FaultyRegistry) -> None:
    """The rest of one body must not be taken for the next answer."""
    with repo.open_blob(DIGEST, len(BLOB), 0, len(BLOB), lane="a") as stream:
        stream.readinto(memoryview(bytearray(1000)))

    assert BLOB[5:1005] == read(repo, 5, 1000, lane="a")
    clients = [entry.request.client for entry in registry.requests("blob")]
    assert clients[0] != clients[1]


def test_an_idle_connection_that_was_closed_is_replaced_silently(repo: Repository, registry: FaultyRegistry) -> None:
    """Servers close idle connections all the time."""
    read(repo, 0, 1000, lane="a")
    registry.end_connections()

    assert BLOB[:1000] == read(repo, 0, 1000, lane="a")


def test_threads_read_at_the_same_time(repo: Repository) -> None:
    """One repository serves many threads, each with its own connection."""
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = read(repo, number * 1000, 100_000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {number: BLOB[number * 1000 : number * 1000 + 100_000] for number in range(8)} == results


# ---- redirects ----


def test_a_redirect_to_a_store_is_followed_without_credentials(transport: Transport) -> None:
    """Authorization and custom headers stay with the registry; the store is asked directly the next time."""
    user = Credential(username="u", password="p")
    with FaultyRegistry() as store, FaultyRegistry(basic={"u": "p"}, object_store=store) as registry:
        store.add_blob(BLOB)
        registry.add_blob(BLOB)
        registry.script("blob", "redirect", forever=True)
        endpoint = endpoint_of(registry, credential=user, headers=(("X-Site", "private"),))
        repo = repository_at(transport, endpoint)

        assert BLOB[9:99] == read(repo, 9, 90)
        asked = len(registry.requests("blob"))
        assert BLOB[1000:1090] == read(repo, 1000, 90)

        assert asked == len(registry.requests("blob"))
        assert "private" == registry.requests("blob")[-1].request.headers["x-site"]
        assert 2 == len(store.requests("signed"))
        for entry in store.requests("signed"):
            assert "" == entry.authorization
            assert "x-site" not in entry.request.headers


def test_an_expired_redirect_is_asked_for_anew(transport: Transport) -> None:
    """A 403 of a remembered URL is no answer about the blob."""
    with FaultyRegistry() as store, FaultyRegistry(object_store=store) as registry:
        store.add_blob(BLOB)
        registry.add_blob(BLOB)
        registry.script("blob", "redirect", forever=True)
        repo = repository_at(transport, endpoint_of(registry))
        read(repo, 0, 10)
        store.expire_signatures()

        assert BLOB[:10] == read(repo, 0, 10)

        store.script("signed", "403", forever=True)
        with pytest.raises(Unavailable, match="object store"):
            read(repo, 0, 10)


def test_redirects_in_a_circle_end(repo: Repository, registry: FaultyRegistry) -> None:
    """At most five are followed."""

    def circle(request: Request) -> Response:
        return Response(status=302, headers={"Location": request.path})

    registry.answer = circle  # type: ignore[method-assign]

    with pytest.raises(Unavailable, match="redirects"):
        read(repo, 0, 10)


@pytest.mark.parametrize(
    "location", ["http://[::1/x", "http://[zz]/", "//[", "http://h:99999/", "http://xn--/", "file:/x"]
)
def test_a_redirect_to_nowhere_is_a_failure_of_the_registry(
    repo: Repository, registry: FaultyRegistry, location: str
) -> None:
    """And none of ours, whichever client follows it."""
    registry.answer = lambda _request: Response(status=307, headers={"Location": location})  # type: ignore[method-assign]

    for ask in (lambda: repo.manifest("v1"), lambda: read(repo, 0, 10)):
        with pytest.raises(Unavailable):
            ask()


# ---- mirrors ----


def test_mirrors_are_asked_first_and_fall_through(transport: Transport, registry: FaultyRegistry) -> None:
    """Whatever a mirror says, the origin has the last word; mirrors get `ns`, the origin does not."""
    with FaultyRegistry() as mirror:
        mirror.add_blob(BLOB)
        repo = repository_at(
            transport, endpoint_of(mirror, origin=False, namespace="registry.test"), endpoint_of(registry)
        )
        assert BLOB[:10] == read(repo, 0, 10)
        assert not registry.requests()
        assert {"ns": "registry.test"} == mirror.requests()[0].request.query

        for fault in ("404", "403", "wrong-range", "no-range;"):
            mirror.script("blob", fault.rstrip(";"))
            assert BLOB[5:15] == read(repo, 5, 10)
            transport.health.note_success(repo._conversations[0].endpoint)

        assert MANIFEST == repo.manifest("v1").content
        assert {} == registry.requests("manifest")[0].request.query


def test_a_failed_mirror_is_passed_over_for_a_while(transport: Transport, registry: FaultyRegistry) -> None:
    """A dead mirror costs its time-out once, not at every request."""
    with FaultyRegistry() as mirror:
        mirror.script("blob", "503", forever=True)
        repo = repository_at(transport, endpoint_of(mirror, origin=False), endpoint_of(registry))

        for _ in range(3):
            assert BLOB[:10] == read(repo, 0, 10)

        assert 1 == len(mirror.requests("blob"))


def test_a_mirror_that_stalls_is_passed_over(
    transport: Transport, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request goes to the next host."""
    monkeypatch.setattr(ranges, "BODY_TIMEOUT_S", 0.2)
    with FaultyRegistry() as mirror:
        mirror.add_blob(BLOB)
        mirror.script("blob", "stall@5", forever=True)
        repo = repository_at(transport, endpoint_of(mirror, origin=False), endpoint_of(registry))

        with pytest.raises(Unavailable):
            read(repo, 0, 10_000)
        assert BLOB[:10_000] == read(repo, 0, 10_000)


def test_a_mirror_without_the_capability_is_not_asked(transport: Transport, registry: FaultyRegistry) -> None:
    """Tags and proofs come from hosts that may resolve; the bytes from hosts that may pull."""
    with FaultyRegistry() as mirror:
        mirror.add_blob(BLOB)
        pull_only = endpoint_of(mirror, origin=False, capabilities=("pull",))
        repo = repository_at(transport, pull_only, endpoint_of(registry))

        repo.manifest("v1")
        repo.manifest(str(Digest.of(MANIFEST)))
        repo.exists(Digest.of(MANIFEST))
        assert not mirror.requests()
        read(repo, 0, 10)
        assert 1 == len(mirror.requests())

        with pytest.raises(InvalidConfig, match="resolve"):
            repository_at(transport, pull_only).manifest("v1")


def test_a_corrupt_manifest_of_a_mirror_is_not_used(transport: Transport, registry: FaultyRegistry) -> None:
    """The origin's is."""
    with FaultyRegistry() as mirror:
        mirror.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])
        mirror.script("manifest", "corrupt", forever=True)
        repo = repository_at(transport, endpoint_of(mirror, origin=False), endpoint_of(registry))

        assert MANIFEST == repo.manifest(str(Digest.of(MANIFEST))).content


def test_hostile_text_is_cleaned_and_secrets_cut_out(transport: Transport) -> None:
    """A registry that repeats a password, sends control characters or pages of text gets one short clean line."""
    shown = clean("\x1b[31mbad\r\npassword hunter2 https://u:p@h/x?sig=1 " + "x" * 5000, ["hunter2"])

    assert "hunter2" not in shown
    assert "sig=1" not in shown
    assert "u:p@" not in shown
    assert shown.isprintable()
    assert len(shown) <= 200


def test_wrong_credentials_are_told_from_missing_ones(transport: Transport) -> None:
    """Both are Unauthenticated; the text differs, and holds no password."""
    with FaultyRegistry(basic={"u": "right"}) as registry:
        registry.add_blob(BLOB)
        with pytest.raises(Unauthenticated, match="asks for credentials"):
            read(repository_at(transport, endpoint_of(registry)), 0, 10)
        wrong = Credential(username="u", password="wr0ng-pass")
        with pytest.raises(Unauthenticated) as caught:
            read(repository_at(transport, endpoint_of(registry, credential=wrong)), 0, 10)
        assert "wr0ng-pass" not in str(caught.value)


def test_a_dripping_manifest_is_given_up(
    repo: Repository, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends a byte now and then does not hold a thread for ever."""
    monkeypatch.setattr(control, "BODY_GRACE_S", 0.1)
    registry.script("manifest", "slow@20", forever=True)

    with pytest.raises(Unavailable, match="too slowly"):
        repo.manifest("v1")


def test_dripping_headers_are_given_up(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a manifest's nor a blob's answer may take for ever to begin, though a byte of it comes all the time."""
    monkeypatch.setattr(control, "ANSWER_LIMIT_S", 0.4)
    monkeypatch.setattr(ranges, "PACE_WINDOW_S", 0.2)
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nX: ", itertools.repeat(120)):
                    sock.sendall(bytes([byte]))
                    if ended.wait(0.02):
                        return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        access = Access(
            registry=host, endpoints=(Endpoint(url=f"http://{host}/v2", origin=True, named=True),), local_allowed=True
        )
        repo = Repository(Reference.parse(f"{host}/{REPOSITORY}:v1"), access, transport)
        with pytest.raises(Unavailable, match="no whole answer"):
            repo.manifest("v1")
        with pytest.raises(Unavailable, match="hardly sends anything"):
            repo.open_blob(Digest.of(b"x"), 10, 0, 10)
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_headers_of_hosts_toml_are_sent_once(transport: Transport, registry: FaultyRegistry) -> None:
    """Whatever their spelling; ours win."""
    headers = (("x-site", "a"), ("accept", "nothing"), ("RANGE", "bytes=0-0"))
    repo = repository_at(transport, endpoint_of(registry, headers=headers))

    repo.manifest("v1")
    assert BLOB[5:15] == read(repo, 5, 10)

    first, second = (entry.request.headers for entry in registry.requests())
    assert "a" == first["x-site"]
    assert "oci.image.manifest" in first["accept"]
    assert "bytes=5-14" == second["range"]


def test_cookies_are_not_kept(repo: Repository, registry: FaultyRegistry) -> None:
    """What a registry sets for one tenant is sent by none."""
    real = registry.answer

    def answer(request: Request) -> Response:
        response = real(request)
        response.headers["Set-Cookie"] = "who=you; Path=/"
        return response

    registry.answer = answer  # type: ignore[method-assign]
    repo.manifest("v1")
    repo.manifest("v1")

    assert all("cookie" not in entry.request.headers for entry in registry.requests())


class _Said:
    """An answer whose body is given."""

    status = 500

    def __init__(self, body: bytes) -> None:
        self._body = body

    def header(self, name: str) -> str:
        return ""

    def read(self, limit_bytes: int) -> bytes:
        return self._body[:limit_bytes]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "body", [b'{"errors":[{"message":' + b"[" * 60_000, b'{"x":' + b"[" * 60_000, b'{"errors":[{"code":"\xff"}]}']
)
def test_an_explanation_that_is_a_trap_is_none(body: bytes) -> None:
    """Nesting without end, or bytes that are no text: the failure is still the one that the status says."""
    assert isinstance(failure(_Said(body), "here"), Unavailable)
