"""Finding chunk indexes: of the registry itself, within few requests, once; and never at a publish's expense."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse.artifact import chunks, referrers
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import CHUNK_INDEX
from fuse.cache.objects import ObjectStore
from fuse.errors import InvalidConfig
from fuse.fetch.lookups import Lookups
from fuse.fetch.referred import NONE_HOLDS_S, TROUBLE_HOLDS_S
from fuse.registry.access import Access, Endpoint
from fuse.registry.origin import Origin
from fuse.registry.publishing import push
from fuse.registry.transport import Transport
from tests.fuse.fetch.test_chunks import CHUNKS, CONTENT, DIGEST
from tests.support.artifacts import EMPTY_CONFIG, RAW, descriptor, manifest
from tests.support.pushregistry import PushRegistry
from tests.support.registry import FaultyRegistry

MODEL = json.dumps(manifest(descriptor(RAW, DIGEST, len(CONTENT)), config=descriptor(EMPTY_CONFIG, DIGEST, 2))).encode()
INDEX = chunks.encode({DIGEST: CHUNKS})
SUBJECT = referrers.descriptor(OCI_MANIFEST, MODEL)


class World:
    """A registry, a mirror before it, a cache's memory, and a clock."""

    def __init__(self, registry: PushRegistry, mirror: FaultyRegistry, directory: Path) -> None:
        self.registry = registry
        self.mirror = mirror
        self.now = 1e9
        self.transport = Transport(environment={})
        self.lookups = Lookups(ObjectStore(directory), clock=lambda: self.now)
        self.indexes = self.lookups.chunk_indexes
        self.reference = Reference.parse(f"{registry.host}/m:v1")

    def origin(self, *, push: bool = False) -> Origin:
        endpoints = (
            Endpoint(url=f"{self.mirror.url}/v2", named=True),
            Endpoint(url=f"{self.registry.url}/v2", origin=True, named=True, capabilities=("pull", "resolve", "push")),
        )
        access = Access(registry=self.registry.host, endpoints=endpoints, local_allowed=True)
        return Origin(self.reference, access, self.transport, push=push)

    def look(self, model: bytes = MODEL, make: Callable[[], Origin] | None = None) -> tuple[Any, int]:
        """What is known afterwards, and how many requests that took."""
        self.registry.log.clear()
        parsed = parse(model, content_type="", digest=Digest.of(model))
        assert isinstance(parsed, Manifest)
        lookup = self.lookups.begin(make or self.origin, self.reference, parsed)
        if lookup is not None:
            lookup.wait(20, everything=True)
        return self.indexes.known(self.reference, Digest.of(model)), len(self.registry.requests())

    def hostile(self, index: bytes, subject: dict[str, Any] = SUBJECT) -> None:
        push(self.origin(push=True), CHUNK_INDEX, subject, index)


@pytest.fixture(params=["api", "tag"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with PushRegistry(referrers_api=request.param == "api") as registry, FaultyRegistry() as mirror:
        made = World(registry, mirror, tmp_path)
        yield made
        made.transport.close()


def test_an_index_is_found_and_remembered(world: World) -> None:
    """Of the registry, never of the mirror; the next publish asks nobody."""
    world.hostile(INDEX)
    found, requests = world.look()

    assert found is not None
    assert {DIGEST: CHUNKS} == found.chunks
    assert not found.authentic  # it came without TLS
    assert requests <= 4
    assert (0, CHUNKS) == (world.look()[1], world.look()[0].chunks[DIGEST])
    assert [] == world.mirror.requests()


def test_that_there_is_none_costs_two_requests_and_is_believed_for_a_while(world: World) -> None:
    """An index that is pushed later is found then."""
    assert world.look() in ((None, 1), (None, 2))
    world.hostile(INDEX)
    world.now += NONE_HOLDS_S - 1
    assert (None, 0) == world.look()
    world.now += 2
    found, _ = world.look()

    assert found is not None


def test_a_registry_in_trouble_is_asked_again_soon(world: World) -> None:
    """Nothing is raised."""
    world.hostile(INDEX)
    world.registry.script("referrers", "500")
    world.registry.script("manifest", "500")
    assert world.look()[0] is None
    assert (None, 0) == world.look()
    world.registry.clear_scripts()
    world.now += TROUBLE_HOLDS_S + 1
    assert world.look()[0] is not None


def test_an_access_without_a_registry_is_no_error(world: World) -> None:
    """There is just no index."""

    def none() -> Origin:
        raise InvalidConfig("no origin")

    assert (None, 0) == world.look(make=none)


def test_nothing_is_asked_where_nothing_could_be_indexed(world: World) -> None:
    """An artifact of small layers has no index."""
    small = json.dumps(manifest(descriptor(RAW, DIGEST, 5), config=descriptor(EMPTY_CONFIG, DIGEST, 2))).encode()

    assert (None, 0) == world.look(small)


@pytest.mark.parametrize(
    "index",
    [
        INDEX[:-1] + b"",
        INDEX + b"\0" * 32,
        b"\0" * len(INDEX),
        chunks.encode({Digest.of(b"another"): CHUNKS}),
        INDEX[:12] + b"\1" + INDEX[13:],
    ],
    ids=["short", "long", "zeros", "another blob", "other chunks"],
)
def test_a_hostile_index_is_passed_over_for_a_good_one(world: World, index: bytes) -> None:
    """Whichever comes first."""
    world.hostile(index)
    assert world.look()[0] is None
    world.hostile(INDEX)
    world.now += NONE_HOLDS_S + 1
    found, _ = world.look()

    assert found is not None
    assert {DIGEST: CHUNKS} == found.chunks


def test_another_manifests_index_is_not_taken(world: World) -> None:
    """A list that leads to an index about something else leads nowhere."""
    other = referrers.descriptor(OCI_MANIFEST, b"other")
    world.hostile(INDEX, other)
    entry = referrers.descriptor(
        OCI_MANIFEST, referrers.manifest_of(CHUNK_INDEX, other, INDEX), artifactType=CHUNK_INDEX.artifact_type
    )
    listing = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    world.registry.referrers_api = False
    tag = referrers.tag_of(Digest.of(MODEL))
    world.registry.add_manifest("m", listing, media_type=OCI_INDEX, tags=[tag])

    assert world.look()[0] is None


def test_an_index_of_another_repository_says_nothing_here(world: World) -> None:
    """What one repository remembers, another one does not see."""
    world.hostile(INDEX)
    world.look()
    elsewhere = Reference.parse(f"{world.registry.host}/other:v1")

    assert world.indexes.known(elsewhere, Digest.of(MODEL)) is None
