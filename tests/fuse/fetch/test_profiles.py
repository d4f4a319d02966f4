"""Profiles in the fetcher: learned from workers that are not trusted, asked of registries with few requests, told to sessions."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fuse import wire
from fuse.artifact import chunks, profile, referrers
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_MANIFEST, Manifest, parse
from fuse.artifact.profile import Profile, Runs
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import CHUNK_INDEX, PROFILE
from fuse.cache.objects import ObjectStore
from fuse.errors import InvalidArtifact, NotFound
from fuse.fetch import protocol
from fuse.fetch.lookups import Lookup, Lookups
from fuse.fetch.profiles import LEARNED, PUSHED
from fuse.fetch.queue import Queue
from fuse.fetch.referred import NONE_HOLDS_S
from fuse.fetch.runs import Priority
from fuse.filesystem.table import Artifact, Blob, Node, Table, encode
from fuse.registry.access import Access, Endpoint
from fuse.registry.origin import Origin
from fuse.registry.publishing import push
from fuse.registry.transport import Transport
from tests.fuse.fetch.test_chunks import CHUNKS, CONTENT, DIGEST
from tests.fuse.fetch.test_queue import FakeBlob, take
from tests.support.artifacts import EMPTY_CONFIG, RAW, descriptor, manifest
from tests.support.fetcher import Admin, FetcherProcess, access_to, pattern, wait_until
from tests.support.pushregistry import PushRegistry

MIB = 1024 * 1024
SIZE = len(CONTENT)
BLOBS = [(str(DIGEST), SIZE)]
MODEL = json.dumps(manifest(descriptor(RAW, DIGEST, SIZE), config=descriptor(EMPTY_CONFIG, DIGEST, 2))).encode()
SUBJECT = referrers.descriptor(OCI_MANIFEST, MODEL)
MANIFEST = Digest.of(MODEL)


class World:
    """A registry, a cache's memory, and a clock."""

    def __init__(self, registry: PushRegistry, directory: Path) -> None:
        self.registry = registry
        self.now = 1e9
        self.transport = Transport(environment={})
        self.objects = ObjectStore(directory)
        self.lookups = Lookups(self.objects, clock=lambda: self.now)
        self.profiles = self.lookups.profiles
        self.reference = Reference.parse(f"{registry.host}/m@{MANIFEST}")
        self.told = 0

    def origin(self) -> Origin:
        endpoint = Endpoint(
            url=f"{self.registry.url}/v2", origin=True, named=True, capabilities=("pull", "resolve", "push")
        )
        access = Access(registry=self.registry.host, endpoints=(endpoint,), local_allowed=True)
        return Origin(self.reference, access, self.transport, push=True)

    def push(self, runs: Runs, created: int) -> None:
        content = profile.encode(profile.made(BLOBS, runs, created))
        push(self.origin(), PROFILE, SUBJECT, content, created=created)

    def learn(self, *runs: tuple[int, int, int]) -> None:
        self.profiles.learn(self.reference, MANIFEST, BLOBS, runs)

    def look(self, *, again: bool = False) -> list[str]:
        """Asks for what is due; the kinds of requests that this took."""
        self.registry.log.clear()
        parsed = parse(MODEL, content_type="", digest=MANIFEST)
        assert isinstance(parsed, Manifest)
        lookup = self.lookups.begin(self.origin, self.reference, parsed, again=again, on_profile=self._told)
        if lookup is not None:
            lookup.wait(20, everything=True)
        return [entry.kind for entry in self.registry.requests()]

    def _told(self, reference: Reference, digest: Digest) -> None:
        assert (self.reference, MANIFEST) == (reference, digest)
        self.told += 1

    @property
    def known(self) -> tuple[str, Runs] | None:
        known = self.profiles.known(self.reference, MANIFEST)
        return None if known is None else (known[0], known[1].runs)


@pytest.fixture(params=["filters", "lists all", "tag"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with PushRegistry(referrers_api=request.param != "tag", filters=request.param == "filters") as registry:
        made = World(registry, tmp_path)
        yield made
        made.transport.close()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[World]:
    """Without anything that two kinds of registries could answer in two ways."""
    with PushRegistry() as registry:
        made = World(registry, tmp_path)
        yield made
        made.transport.close()


def test_the_last_load_counts_unless_it_touched_less(alone: World) -> None:
    """Who looks into a file does not undo what a whole load has taught; a load that touched as much does."""
    assert alone.known is None
    alone.learn((0, 0, 2), (0, 5, 1))
    alone.learn((0, 1, 2))
    assert ("learned", ((0, 0, 2), (0, 5, 1))) == alone.known
    alone.learn((0, 3, 3))
    assert ("learned", ((0, 3, 3),)) == alone.known


@pytest.mark.parametrize("runs", [((0, 0, 10**6),), ((1, 0, 1),), ((0, 0, 2), (0, 1, 1)), ()])
def test_what_no_load_can_have_touched_is_refused(alone: World, runs: Runs) -> None:
    """And what is known stays."""
    alone.learn((0, 1, 1))
    with pytest.raises(InvalidArtifact):
        alone.learn(*runs)
    assert ("learned", ((0, 1, 1),)) == alone.known


def test_a_load_of_another_repository_says_nothing_here(alone: World) -> None:
    """What one repository's readers do is not told to those of another."""
    alone.learn((0, 1, 1))

    assert alone.profiles.known(Reference.parse(f"{alone.registry.host}/other"), MANIFEST) is None


def test_a_pushed_profile_is_found_and_remembered(world: World) -> None:
    """The newest, of the registry itself; the next publish asks nobody."""
    world.push(((0, 3, 2), (0, 0, 1)), created=1000)
    world.push(((0, 4, 2),), created=2000)
    world.push(((0, 5, 1),), created=1500)
    assert world.look()
    assert ("pushed", ((0, 4, 2),)) == world.known
    assert 1 == world.told
    assert [] == world.look()


def test_our_own_profile_counts_more_and_nobody_is_asked(world: World) -> None:
    """Only for the chunk index; and if ours is lost, the pushed one is found after all."""
    world.push(((0, 3, 2),), created=1000)
    world.learn((0, 0, 1))
    world.look()
    assert ("learned", ((0, 0, 1),)) == world.known
    assert 0 == world.told
    world.objects.remove(LEARNED, world.objects.keys(LEARNED)[0])
    world.look()
    assert ("pushed", ((0, 3, 2),)) == world.known


def test_where_the_registry_does_not_filter_the_list_is_asked_for_once(world: World) -> None:
    """Chunk index and profile together cost no more questions than one of them, if the list has both."""
    push(world.origin(), CHUNK_INDEX, SUBJECT, chunks.encode({DIGEST: CHUNKS}))
    world.push(((0, 3, 2),), created=1000)
    asked = world.look()

    referrers_asked = 2 if world.registry.referrers_api and world.registry.filters else 1
    manifests_asked = 2 if world.registry.referrers_api else 3
    assert {"referrers": referrers_asked, "manifest": manifests_asked, "blob": 2} == {
        kind: asked.count(kind) for kind in asked
    }
    assert world.known is not None
    assert world.lookups.chunk_indexes.known(world.reference, MANIFEST) is not None


def test_that_there_is_none_is_believed_for_a_while(world: World) -> None:
    """Unless somebody wants to know it now."""
    world.look()
    world.push(((0, 3, 2),), created=1000)
    world.now += NONE_HOLDS_S - 1
    assert [] == world.look()
    assert world.known is None
    world.look(again=True)
    assert world.known is not None


def test_hostile_profiles_are_passed_over(world: World) -> None:
    """For the newest that is one; what the list says of their size is not believed either."""
    good = profile.made(BLOBS, ((0, 3, 2),), 1000)
    world.push(good.runs, created=1000)
    hostile = msgspec.structs.replace(good, runs=((0, 0, 10**6),))
    for created, content in ((3000, profile.encode(hostile)), (2000, b"\0" * (profile.MAX_PROFILE_BYTES + 1))):
        push(world.origin(), PROFILE, SUBJECT, content, created=created)
    world.look()

    assert ("pushed", ((0, 3, 2),)) == world.known
    assert world.objects.keys(PUSHED)


def test_wishes_of_one_priority_are_forgotten() -> None:
    """Also those of a blob that is held back; others, and what is in flight, stay."""
    queue: Queue[FakeBlob] = Queue(lanes=1)
    one, two, held = FakeBlob(8), FakeBlob(8), FakeBlob(8)
    queue.hold(held, until=100.0)
    for blob in (held, one, two):
        queue.want("port", blob, 0, 8, Priority.BACKGROUND)
    queue.want("other", two, 4, 1, Priority.BACKGROUND)
    queue.want("port", two, 0, 1, Priority.READAHEAD)
    assert two is take(queue, urgent_only=True).blob
    run = take(queue)
    assert one is run.blob
    queue.forget("port", Priority.BACKGROUND)

    assert {("other", 4)} == {(wish.owner, wish.first) for wish in queue.wishes()}
    assert run in list(queue.runs())


def test_nobody_waits_for_a_profile() -> None:
    """But who wants to see what there is."""
    answered = threading.Event()
    lookup = Lookup(lambda: None, lambda: answered.wait(60) and None)
    lookup.start()
    began = time.monotonic()
    lookup.wait(60)
    assert time.monotonic() - began < 30
    lookup.wait(0.01, everything=True)
    assert lookup.running
    answered.set()
    lookup.wait(60, everything=True)
    assert not lookup.running


# ---- the process ----


def table() -> Table:
    nodes = (Node(1, "", "d", 0o555, 0), Node(1, "model.bin", "f", 0o444, 0, SIZE, 0))
    return Table(
        artifacts=(Artifact(digest=str(MANIFEST), media_type="x"),), blobs=(Blob(str(DIGEST), SIZE, "x"),), nodes=nodes
    )


class Listener:
    """A worker's end of a session, that remembers the orders it was told."""

    def __init__(self, admin: Admin, host: str, mount: str = "m") -> None:
        ours, theirs = wire.pair()
        self.channel: wire.Channel[protocol.ToWorker] = wire.Channel(ours, protocol.ToWorker)
        fd = wire.sealed_memfd("table", encode(table()))
        try:
            fds = (theirs.fileno(), fd)
            admin.ask(protocol.Attach, fds, mount=mount, registry=host, reference=f"{host}/m@{MANIFEST}")
        finally:
            theirs.close()
            os.close(fd)
        self.orders: list[Runs] = []
        self.others: list[protocol.ToWorker] = []
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while (received := self.channel.receive()) is not None:
            message, fds = received
            wire.close_all(fds)
            if isinstance(message, protocol.Order):
                self.orders.append(message.runs)
            else:
                self.others.append(message)

    def close(self) -> None:
        self.channel.hang_up()
        self._thread.join()
        self.channel.close()


def test_what_a_worker_says_at_its_end_is_kept(tmp_path: Path) -> None:
    """Although mount, administrator and fetcher go with it; the next session begins with it, as others are told it."""
    host = "127.0.0.1:5000"
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        admin.ask(protocol.Hello)
        worker = Listener(admin, host)
        wait_until(lambda: worker.orders == [()], "the greeting")
        with pytest.raises(NotFound):
            admin.ask(protocol.FindProfile, reference=f"{host}/m@{MANIFEST}")
        worker.channel.send(protocol.Learned(runs=((0, 0, 10**6),)))  # nonsense, which is passed over
        worker.channel.send(protocol.Learned(runs=((0, 4, 2), (0, 0, 1))))
        worker.close()
        admin.ask(protocol.Detach, mount="m")
    fetcher.process.wait(5)
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        admin.ask(protocol.Hello)
        worker = Listener(admin, host)
        wait_until(lambda: worker.orders == [((0, 4, 2), (0, 0, 1))], "the order of the last load")
        answer, fds = admin.ask_with_fds(protocol.FindProfile, reference=f"{host}/m@{MANIFEST}")
        assert "learned" == answer.source
        found: Profile = profile.decode(wire.read_whole(fds[0], profile.MAX_PROFILE_BYTES))
        assert ((0, 4, 2), (0, 0, 1)) == found.runs
        wire.close_all(fds)
        worker.close()


def test_a_mount_that_is_there_is_told_what_the_registry_has(tmp_path: Path) -> None:
    """The publish did not wait for it."""
    with PushRegistry() as registry, FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        registry.add_blob(CONTENT)
        registry.add_blob(b"{}")
        registry.add_manifest("m", MODEL, tags=["v1"])
        world = World(registry, tmp_path / "memory")
        world.push(((0, 4, 2),), created=1000)
        world.transport.close()
        registry.script("blob", "hang")  # the first small blob that is asked for is the profile
        admin.ask(protocol.Hello)
        resolved = admin.ask(protocol.Resolve, reference=f"{registry.host}/m:v1", access=access_to(registry.url))
        assert str(MANIFEST) == resolved.digest
        worker = Listener(admin, registry.host)
        wait_until(lambda: worker.orders == [()], "the greeting")
        registry.release()
        registry.clear_scripts()
        admin.ask(protocol.Resolve, reference=f"{registry.host}/m:v1", access=access_to(registry.url), look_again=True)
        wait_until(lambda: worker.orders == [(), ((0, 4, 2),)], "the order that was pushed")
        worker.close()


def test_what_was_wished_in_another_order_is_forgotten(tmp_path: Path) -> None:
    """What was not begun yet is not fetched before what the new order names first."""
    contents = [pattern(8 * MIB, seed) for seed in range(3)]
    blobs = [(Digest.of(content), len(content)) for content in contents]
    with PushRegistry() as registry, FetcherProcess(tmp_path / "cache", connections=1) as fetcher:
        for content in contents:
            registry.add_blob(content)
        registry.script("blob", "hang")
        with fetcher.connect() as admin, admin.attach("m", blobs, registry.url) as worker:
            admin.grant("m", registry.url)
            worker.open(0)
            worker.open(2)
            worker.want(0, 0, 8, "background")
            wait_until(lambda: registry.hanging, "the first request")
            worker.want(1, 0, 8, "background")
            worker.channel.send(protocol.Want(blob=2, first=0, count=8, priority="background", anew=True))
            worker.open(1)  # answered after that
            registry.release()
            worker.demand(2, 0, 8)
            worker.demand(0, 0, 8)
        asked = {entry.request.path.rpartition("/")[2] for entry in registry.requests("blob")}
        assert {str(blobs[0][0]), str(blobs[2][0])} == asked


def test_a_holder_of_an_older_version_is_told_nothing_new(tmp_path: Path) -> None:
    """Its workers hear of no order."""
    with FetcherProcess(tmp_path / "cache") as fetcher, fetcher.connect() as admin:
        admin.ask(protocol.Hello, version=1)
        worker = Listener(admin, "127.0.0.1:5000")
        worker.channel.send(protocol.Learned(runs=((0, 4, 2),)))
        worker.channel.send(protocol.Open(blob=0))
        wait_until(lambda: worker.others, "an answer")
        worker.close()
        assert [] == worker.orders
        with pytest.raises(NotFound):
            admin.ask(protocol.FindProfile, reference=f"127.0.0.1:5000/m@{MANIFEST}")
