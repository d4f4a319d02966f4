"""Mirrors that are peers: what they are asked, what is believed of them, and the way round them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from fuse.artifact.digest import Digest
from fuse.errors import Forbidden, Unavailable
from fuse.registry import control, ranges
from fuse.registry.access import Credential
from fuse.registry.health import DETOURS_PER_S, Later
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.fuse.registry.conftest import REPOSITORY, endpoint_of, repository_at
from tests.support.peer import Peer
from tests.support.registry import FaultyRegistry

BLOB = os.urandom(3 * 1024 * 1024 + 17)
DIGEST = Digest.of(BLOB)
DRAGONFLY = (("X-Dragonfly-Registry", "https://registry.test"), ("x-dragonfly-tag", "models"))


@pytest.fixture
def origin() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_blob(BLOB)
        yield registry


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        peer.add_blob(BLOB)
        yield peer


@pytest.fixture
def repo(transport: Transport, origin: FaultyRegistry, peer: Peer) -> Repository:
    dragonfly = endpoint_of(peer, origin=False, namespace="registry.test", headers=DRAGONFLY)
    return repository_at(transport, dragonfly, endpoint_of(origin))


def read(repo: Repository, first: int, length: int, *, urgent: bool = True) -> bytes:
    with repo.open_blob(DIGEST, len(BLOB), first, length, urgent=urgent) as stream:
        content = bytearray(stream.length)
        filled = 0
        while count := stream.readinto(memoryview(content)[filled:]):
            filled += count
        return bytes(content[first - stream.start :][:length])


# ---- what they are asked ----


def test_a_peer_is_told_the_registry_and_how_urgent_it_is(repo: Repository, peer: Peer) -> None:
    """The registry's own URL with `ns`, the headers of hosts.toml, and a priority that is higher where a reader waits."""
    read(repo, 5, 10)
    read(repo, 5, 10, urgent=False)

    first = peer.requests("blob")[0].request
    assert f"/v2/{REPOSITORY}/blobs/{DIGEST}" == first.path
    assert {"ns": "registry.test"} == first.query
    assert ("https://registry.test", "models") == (
        first.headers["x-dragonfly-registry"],
        first.headers["x-dragonfly-tag"],
    )
    assert ["6", "3"] == peer.priorities()


def test_the_priority_of_hosts_toml_counts(transport: Transport, origin: FaultyRegistry, peer: Peer) -> None:
    """Who set it knows the cluster."""
    given = endpoint_of(peer, origin=False, headers=(("x-dragonfly-priority", "4"),))
    repo = repository_at(transport, given, endpoint_of(origin))

    read(repo, 5, 10)
    read(repo, 5, 10, urgent=False)

    assert ["4", "4"] == peer.priorities()


@pytest.mark.parametrize("origin_too", [False, True])
def test_who_is_no_peer_is_told_nothing(
    transport: Transport, origin: FaultyRegistry, peer: Peer, origin_too: bool
) -> None:
    """Neither a mirror without Dragonfly's headers, nor the registry itself whatever it was given."""
    endpoint = endpoint_of(peer, origin=origin_too, headers=DRAGONFLY if origin_too else (("X-Site", "a"),))

    read(repository_at(transport, endpoint, endpoint_of(origin)), 5, 10)

    assert [""] == peer.priorities()


def test_a_mirror_is_asked_by_its_own_url_each_time(transport: Transport, origin: FaultyRegistry) -> None:
    """Where it redirected to is not remembered, and hears neither its headers nor its credentials."""
    with Peer() as store, Peer(basic={"u": "p"}, object_store=store) as peer:
        peer.add_blob(BLOB)
        store.add_blob(BLOB)
        peer.script("blob", "redirect", forever=True)
        endpoint = endpoint_of(
            peer,
            origin=False,
            namespace="registry.test",
            headers=DRAGONFLY,
            credential=Credential(username="u", password="p"),
        )
        repo = repository_at(transport, endpoint, endpoint_of(origin))

        for _ in range(3):
            assert BLOB[9:99] == read(repo, 9, 90, urgent=False)

        asked = [entry.request for entry in peer.requests("blob") if entry.status == 307]
        assert 3 == len(asked)
        assert all(request.query == {"ns": "registry.test"} for request in asked)
        assert 3 == len(store.requests("signed"))
        for entry in store.requests("signed"):
            assert "" == entry.authorization
            assert not [name for name in entry.request.headers if name.startswith("x-dragonfly")]
        assert not origin.requests()


# ---- what is believed ----


@pytest.mark.parametrize("answer", ["partial", "partial-range"])
def test_a_mirrors_200_may_be_the_range(repo: Repository, peer: Peer, origin: FaultyRegistry, answer: str) -> None:
    """Where its length is what was asked for, or Content-Range says so: every byte lands where it belongs."""
    peer.script("blob", answer, forever=True)

    assert BLOB[1000:1050] == read(repo, 1000, 50)
    with repo.open_blob(DIGEST, len(BLOB), 1000, 50) as stream:
        assert (1000, 50) == (stream.start, stream.length)
    assert not origin.requests()


def test_a_mirrors_200_of_unknown_length_is_not_used(repo: Repository, peer: Peer, origin: FaultyRegistry) -> None:
    """It may be the range or the whole: bytes at the wrong place are worse than none."""
    peer.script("blob", "chunked", forever=True)

    assert BLOB[1000:1050] == read(repo, 1000, 50)
    assert 1 == len(origin.requests("blob"))


def test_a_mirror_that_ignores_ranges_sends_the_whole(repo: Repository, peer: Peer, origin: FaultyRegistry) -> None:
    """A 200 with the blob's length is that, from a mirror too."""
    peer.script("blob", "no-range", forever=True)

    with repo.open_blob(DIGEST, len(BLOB), 1000, 50) as stream:
        assert (0, len(BLOB)) == (stream.start, stream.length)
    assert not origin.requests()


@pytest.mark.parametrize("answer", ["partial", "partial-range"])
def test_a_registrys_200_is_the_whole_or_wrong(transport: Transport, peer: Peer, answer: str) -> None:
    """Nobody vouches for it."""
    peer.script("blob", answer, forever=True)

    with pytest.raises(Unavailable, match="fewer bytes than the whole"):
        read(repository_at(transport, endpoint_of(peer)), 1000, 50)


# ---- the way round ----


@pytest.mark.parametrize("fault", ["proxy=403", "proxy=500", "dfdaemon=500", "dfdaemon=404"])
def test_trouble_of_the_peers_own_is_passed_over(
    repo: Repository, peer: Peer, origin: FaultyRegistry, fault: str
) -> None:
    """The registry is asked at once, whatever the status, and the peer left alone for a while."""
    peer.script("blob", fault, forever=True)

    for _ in range(3):
        assert BLOB[:10] == read(repo, 0, 10)

    assert 1 == len(peer.requests("blob"))
    assert 3 == len(origin.requests("blob"))


def test_a_peers_403_is_not_the_registrys_word(transport: Transport, peer: Peer) -> None:
    """Of a proxy it is temporary; without that word it is a refusal. So it is with a mirror that is asked last."""
    repo = repository_at(transport, endpoint_of(peer, origin=False, headers=DRAGONFLY))
    peer.script("blob", "proxy=403 backend=403")

    with pytest.raises(Unavailable, match="peer-to-peer proxy itself"):
        read(repo, 0, 10)
    with pytest.raises(Forbidden):
        read(repo, 0, 10)


def test_the_word_about_the_fault_counts_from_peers_only(transport: Transport, peer: Peer) -> None:
    """A registry that sends the header is believed its status."""
    peer.script("blob", "proxy=403")

    with pytest.raises(Forbidden):
        read(repository_at(transport, endpoint_of(peer, headers=DRAGONFLY)), 0, 10)


@pytest.mark.parametrize("fault", ["429;7", "proxy=429", "backend=502"])
def test_a_crowd_is_gone_round_by_readers_and_waited_for_by_the_rest(
    repo: Repository, peer: Peer, origin: FaultyRegistry, fault: str
) -> None:
    """429 of the peer, and trouble of the registry that it tells of: nothing that is fetched ahead comes to the registry."""
    peer.script("blob", fault, forever=True)

    for _ in range(3):
        with pytest.raises(Later) as caught:
            read(repo, 0, 10, urgent=False)
        assert 0 < caught.value.after_s <= 1
    assert not origin.requests()
    assert 1 == len(peer.requests("blob"))

    assert BLOB[:10] == read(repo, 0, 10)
    assert 1 == len(origin.requests("blob"))


def test_a_dead_peer_does_not_send_everybody_to_the_registry(transport: Transport, origin: FaultyRegistry) -> None:
    """What is fetched ahead gets a few requests through and is then put off; a reader always gets its bytes."""
    with Peer() as gone:
        endpoint = endpoint_of(gone, origin=False, headers=DRAGONFLY)
    repo = repository_at(transport, endpoint, endpoint_of(origin))
    clock = transport.health._clock()
    transport.health._clock = lambda: clock

    def ahead() -> bool:
        try:
            return read(repo, 0, 10, urgent=False) == BLOB[:10]
        except Later:
            return False

    came = [ahead() for _ in range(30)]
    assert DETOURS_PER_S <= came.count(True) <= DETOURS_PER_S + 1
    assert not came[-1]
    for _ in range(20):
        assert BLOB[:10] == read(repo, 0, 10)
    assert not ahead()


def test_a_blob_that_no_peer_has_comes_from_the_registry_freely(
    repo: Repository, peer: Peer, origin: FaultyRegistry
) -> None:
    """404 of a mirror is the way of the first node, not a failure."""
    peer.remove_blob(DIGEST)

    for _ in range(30):
        assert BLOB[:10] == read(repo, 0, 10, urgent=False)

    assert (30, 30) == (len(peer.requests("blob")), len(origin.requests("blob")))


def test_a_silent_peer_is_not_waited_for_as_long_as_a_registry(
    repo: Repository, transport: Transport, peer: Peer, origin: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time-outs are its own: for blobs as for manifests."""
    assert ranges.MIRROR_HEADER_TIMEOUT_S <= 5 >= control.MIRROR_ANSWER_LIMIT_S
    monkeypatch.setattr(ranges, "MIRROR_HEADER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ranges, "HEADER_TIMEOUT_S", 1000.0)
    monkeypatch.setattr(control, "MIRROR_ANSWER_LIMIT_S", 0.1)
    monkeypatch.setattr(control, "ANSWER_LIMIT_S", 1000.0)
    content = b"{}"
    origin.add_manifest(REPOSITORY, content, tags=["v1"])
    peer.script("blob", "hang", forever=True)
    peer.script("manifest", "hang", forever=True)

    with capture_logs() as logs:
        assert BLOB[:10] == read(repo, 0, 10)
        transport.health.note_success(repo._conversations[0].endpoint)
        assert content == repo.manifest("v1").content
    peer.release()

    assert ["no answer within 0.1 s", "no whole answer within 0.1 to 0.1 s"] == [entry["reason"] for entry in logs]
