"""Whose yes counts: a mirror's only if it has looked at the credentials of the request, or while nobody else can be asked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from fuse.artifact import manifest as manifests
from fuse.artifact.digest import Digest
from fuse.errors import Forbidden, InvalidArtifact, Unauthenticated, Unavailable
from fuse.registry import health, repository
from fuse.registry.access import Credential
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.conftest import need_program
from tests.fuse.registry.conftest import REPOSITORY, endpoint_of, repository_at
from tests.support.dockerregistry import DockerRegistry
from tests.support.registry import FaultyRegistry, Tokens
from weightless.demo.registry import MANIFEST_TYPE

MANIFEST = json.dumps({"schemaVersion": 2, "layers": []}).encode()
DIGEST = Digest.of(MANIFEST)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_backoff", lambda _state: 0.01)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])
        yield registry


def test_a_mirror_that_lets_everybody_in_lets_nobody_into_the_registry(transport: Transport) -> None:
    """It has what is private there; the registry is asked whether these credentials may have it, by tag and by digest."""
    user = Credential(username="u", password="p")
    with FaultyRegistry() as mirror, FaultyRegistry(basic={"u": "p", "eve": "e"}) as registry:
        registry.closed_to = {"eve": {REPOSITORY}}
        for host in (mirror, registry):
            host.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])

        def repo(credential: Credential | None) -> Repository:
            return repository_at(
                transport, endpoint_of(mirror, origin=False), endpoint_of(registry, credential=credential)
            )

        for credential, refusal in ((None, Unauthenticated), (Credential(username="eve", password="e"), Forbidden)):
            for ask in (
                lambda known: known.manifest("v1"),
                lambda known: known.manifest(str(DIGEST)),
                lambda known: known.exists(DIGEST),
            ):
                with pytest.raises(refusal):
                    ask(repo(credential))
        assert MANIFEST == repo(user).manifest("v1").content
        assert {"HEAD"} == {entry.request.method for entry in registry.requests("manifest")}
        repo(user).exists(DIGEST)
        assert mirror.requests("manifest")


def test_a_mirror_that_takes_credentials_speaks_for_the_registry(
    transport: Transport, registry: FaultyRegistry
) -> None:
    """It has looked at them; tokens for anybody are none."""
    user = Credential(username="u", password="p")
    for credential, tokens, asked in (
        (user, Tokens(users={"u": "p"}), False),
        (None, Tokens(anonymous=True), True),
    ):
        with FaultyRegistry(tokens=tokens) as mirror:
            mirror.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])
            repo = repository_at(
                transport, endpoint_of(mirror, origin=False, credential=credential), endpoint_of(registry)
            )
            before = len(registry.requests())
            repo.manifest("v1")
            repo.exists(DIGEST)
            assert asked == (len(registry.requests()) > before)


def test_an_open_mirror_stands_in_for_a_registry_that_is_away(
    transport: Transport, registry: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for one that answers, be it 429; and who is away is asked again after a while, not each time."""
    with FaultyRegistry() as mirror:
        mirror.add_manifest(REPOSITORY, MANIFEST, tags=["v1"])
        repo = repository_at(transport, endpoint_of(mirror, origin=False), endpoint_of(registry))
        registry.script("manifest", "429;0", forever=True)
        with pytest.raises(Unavailable):
            repo.manifest("v1")

        registry.script("manifest", "503", forever=True)
        before = len(registry.requests())
        for _ in range(3):
            assert MANIFEST == repo.manifest("v1").content
        assert before + 1 == len(registry.requests())
        registry.script("manifest", "403", forever=True)
        assert MANIFEST == repo.manifest("v1").content
        monkeypatch.setattr(transport.health.away, "_clock", lambda: time.monotonic() + health.AWAY_S)
        for _ in range(2):
            with pytest.raises(Forbidden):
                repo.manifest("v1")


def test_who_is_away_is_tried_by_one_for_all() -> None:
    """The others go on with what the mirror says meanwhile; an answer ends it."""
    now = [0.0]
    away = health.Away(lambda: now[0])
    assert away.may_ask("a")
    away.note("a")
    assert not away.may_ask("a")
    assert away.may_ask("b")
    now[0] = health.AWAY_S
    assert [True, False] == [away.may_ask("a"), away.may_ask("a")]
    away.clear("a")
    assert away.may_ask("a")


def test_a_tag_that_has_moved_on_is_asked_of_the_registry(transport: Transport, registry: FaultyRegistry) -> None:
    """What an open mirror remembers of it may be gone there."""
    with FaultyRegistry() as mirror:
        mirror.add_manifest(REPOSITORY, MANIFEST + b" ", tags=["v1"])
        repo = repository_at(transport, endpoint_of(mirror, origin=False), endpoint_of(registry))

        assert MANIFEST == repo.manifest("v1").content


def test_nobodys_manifest_names_a_layer_that_its_repository_does_not_have(tmp_path: Path) -> None:
    """docker-registry refuses to store it, but for layers with urls; those are refused when they are read."""
    need_program("docker-registry", "docker-registry")
    config, weights = b"{}", b"of somebody else"
    with (
        DockerRegistry(tmp_path / "registry") as registry,
        httpx.Client(base_url=f"{registry.url}/v2", trust_env=False) as client,
    ):

        def push(repository: str, content: bytes) -> None:
            upload = client.post(f"/{repository}/blobs/uploads/").headers["Location"]
            answer = client.put(f"{upload}&digest={quote(str(Digest.of(content)))}", content=content)
            assert 201 == answer.status_code, answer.text

        push("private/model", weights)
        push("own/model", config)
        layer = {"mediaType": "application/octet-stream", "digest": str(Digest.of(weights)), "size": len(weights)}
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": "application/x", "digest": str(Digest.of(config)), "size": len(config)},
        }
        for urls, status in (({}, 400), ({"urls": ["https://elsewhere.test/x"]}, 201)):
            content = json.dumps(document | {"layers": [layer | urls]}).encode()
            headers = {"Content-Type": MANIFEST_TYPE}
            assert status == client.put("/own/model/manifests/v1", content=content, headers=headers).status_code
        with pytest.raises(InvalidArtifact, match="is said to lie elsewhere"):
            manifests.parse(content, content_type=MANIFEST_TYPE, digest=Digest.of(content))
