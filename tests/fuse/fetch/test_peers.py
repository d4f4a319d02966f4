"""The engine and its lanes behind a peer-to-peer proxy: who waits for it, who goes round it, and who is blamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.artifact.reference import Reference
from fuse.fetch.mounts import Port
from fuse.fetch.runs import Priority
from fuse.registry.access import Access, Endpoint
from fuse.registry.health import DETOURS_PER_S
from fuse.registry.repository import Repository
from tests.support.fetcher import wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, MIB, SCOPE, Recorder, Rig, expected
from tests.support.peer import Peer
from tests.support.registry import FaultyRegistry


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        peer.add_blob(CONTENT)
        yield peer
        peer.release()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "c").mkdir()
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        rig = Rig(tmp_path / "c", registry)
        yield rig
        rig.close()


def mounted(rig: Rig, peer: Peer) -> tuple[Port, Recorder]:
    """A mount whose blobs come from the peer, then from the registry."""
    port, seen = rig.mount(granted=False)
    grant(rig, port, peer)
    return port, seen


def grant(rig: Rig, port: Port, peer: Peer) -> None:
    registry = rig.registry
    dragonfly = Endpoint(
        url=f"{peer.url}/v2",
        named=True,
        namespace=registry.host,
        headers=(("X-Dragonfly-Registry", registry.url),),
    )
    origin = Endpoint(url=f"{registry.url}/v2", origin=True, named=True)
    access = Access(registry=registry.host, endpoints=(dragonfly, origin), local_allowed=True)
    source = Repository(Reference.parse(f"{registry.host}/m:v1"), access, rig.transport)
    rig.engine.grant(port.mount, "g", source)


def test_readers_and_the_rest_are_told_apart(rig: Rig, peer: Peer) -> None:
    """A demand is asked for with the higher priority; the registry itself hears of neither."""
    port, seen = mounted(rig, peer)
    rig.want(port, 30)
    seen.wait_ready(30)
    assert ["6"] == peer.priorities()

    rig.want(port, 0, 8, Priority.READAHEAD)
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    wait_until(lambda: port.mount.blobs[0].complete, "every block")

    assert {"3"} == set(peer.priorities()[1:])
    assert not rig.registry.requests()


def test_what_is_fetched_ahead_is_asked_for_in_whole_pieces(rig: Rig, peer: Peer) -> None:
    """Ranges begin and end at multiples of 4 MiB, but for the end of the blob."""
    port, _ = rig.mount(granted=False)
    rig.want(port, 0, 6, Priority.READAHEAD)
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    grant(rig, port, peer)  # now all that is wished is known
    wait_until(lambda: port.mount.blobs[0].complete, "every block")

    ranges = [entry.request.range.removeprefix("bytes=").split("-") for entry in peer.requests("blob")]
    edges = {int(first) for first, _ in ranges} | {int(last) + 1 for _, last in ranges}
    assert not [edge for edge in edges if edge % (4 * MIB) and edge != len(CONTENT)]


@pytest.mark.parametrize("answer", ["partial", "partial-range"])
def test_a_200_with_a_part_lands_where_it_belongs(rig: Rig, peer: Peer, answer: str) -> None:
    """As older proxies answer: every byte is right, and asked for once."""
    peer.script("blob", answer, forever=True)
    port, seen = mounted(rig, peer)
    for block in range(BLOCKS):
        rig.want(port, block)
    seen.wait_ready(*range(BLOCKS))

    assert CONTENT == b"".join(seen.block(block) for block in range(BLOCKS))
    assert len(CONTENT) == rig.engine.progress(port.mount, 1).bytes_fetched
    assert not rig.registry.requests()


def test_a_crowded_peer_is_waited_for_by_what_nobody_waits_for(rig: Rig, peer: Peer) -> None:
    """Readers get their blocks from the registry meanwhile; the rest comes from the peer, when it can, and no mount complains."""
    peer.script("blob", "429;0", forever=True)
    port, seen = mounted(rig, peer)
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    wait_until(lambda: len(peer.requests("blob")) >= 3, "the peer to be asked again")
    assert not rig.registry.requests()

    rig.want(port, 30)
    seen.wait_ready(30)
    assert expected(30) == seen.block(30)
    assert {"bytes=31457280-32505855"} == {entry.request.range for entry in rig.registry.requests("blob")}

    peer.clear_scripts()
    wait_until(lambda: port.mount.blobs[0].complete, "the rest")
    assert 1 == len(rig.registry.requests("blob"))
    assert not seen.stalls
    assert not seen.failed


def used_up(rig: Rig) -> list[float]:
    """Nothing ahead of readers comes round a mirror that fails until the clock, which is returned, goes on."""
    health = rig.transport.health
    clock = [health._clock()]
    health._clock = lambda: clock[0]
    for _ in range(int(DETOURS_PER_S) + 1):
        health.take_detour()
    return clock


def test_who_waits_for_a_whole_blob_goes_round_as_a_reader(rig: Rig, peer: Peer) -> None:
    """A strict mount's reader waits for every block of it, though it asks for none by itself."""
    used_up(rig)
    peer.script("blob", "dfdaemon=500", forever=True)
    port, seen = mounted(rig, peer)
    rig.engine.want_whole(port, 0)
    seen.wait(lambda: seen.whole, "the whole")

    assert not rig.engine.dispatch.queue.shares.is_put_off(SCOPE)


def test_a_peer_in_trouble_is_gone_round_by_few(rig: Rig, peer: Peer) -> None:
    """While the way round is used up only readers use it; no registry is blamed, and the rest comes as the bucket fills."""
    clock = used_up(rig)
    peer.script("blob", "dfdaemon=500", forever=True)
    port, seen = mounted(rig, peer)
    rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
    wait_until(lambda: rig.engine.dispatch.queue.shares.is_put_off(SCOPE), "the background to be put off")
    for block in (20, 35):
        rig.want(port, block)
        seen.wait_ready(block)
        assert expected(block) == seen.block(block)

    asked = [entry.request.range for entry in rig.registry.requests("blob")]
    assert [f"bytes={block * MIB}-{(block + 1) * MIB - 1}" for block in (20, 35)] == asked
    assert 2 == rig.engine.progress(port.mount, 1).requests  # what was put off was not asked
    assert not seen.stalls

    clock[0] += 2
    wait_until(lambda: port.mount.blobs[0].complete, "the rest")
    assert len(CONTENT) == rig.engine.progress(port.mount, 1).bytes_fetched
    assert not seen.failed
