"""The memory of who was let in: found by the same credentials only, not for ever, and worth nothing to who reads the disk."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.cache.objects import ObjectStore
from fuse.errors import Forbidden, NotFound, Unauthenticated, Unavailable, WeightlessError
from fuse.fetch.proofs import Leave, Proofs
from fuse.fetch.resolve import Resolution, resolve
from fuse.registry.access import Access, Credential, Endpoint
from tests.support.artifacts import Answer, Shelf, index

DIGEST = Digest.of(b"a manifest")
ALICE = Credential(username="alice", password="open sesame")
NAME = "r.example.com/models/a"


def access(credential: Credential | None = ALICE, *, offline_s: float = 3600.0, host: str = "r.example.com") -> Access:
    endpoint = Endpoint(url=f"https://{host}/v2", origin=True, credential=credential)
    return Access(registry=host, endpoints=(endpoint,), offline_s=offline_s)


@pytest.fixture
def proofs(tmp_path: Path) -> Proofs:
    return Proofs(ObjectStore(tmp_path / "objects"), tmp_path / "objects")


OTHERS = [
    access(None),
    access(Credential(username="alice", password="open barley")),
    access(Credential(identity_token="open sesame")),
    access(host="s.example.com"),
    access(offline_s=0.0),
]


@pytest.mark.parametrize("other", OTHERS)
def test_only_the_same_credentials_find_a_proof(proofs: Proofs, other: Access) -> None:
    """Others, none, another registry, another repository, another target, and a policy that refuses, find nothing."""
    proofs.of(access(), NAME).remember("v1", DIGEST)
    found = proofs.of(access(), NAME).recall("v1")

    assert found is not None
    assert found.digest == str(DIGEST)
    assert proofs.of(other, NAME).recall("v1") is None
    assert proofs.of(access(), f"{NAME}b").recall("v1") is None
    assert proofs.of(access(), NAME).recall("v2") is None


def test_anonymous_is_a_credential_of_its_own(proofs: Proofs) -> None:
    """What needed no credentials is found without any, and not with some."""
    proofs.of(access(None), NAME).remember("v1", DIGEST)

    assert proofs.of(access(None), NAME).recall("v1") is not None
    assert proofs.of(access(), NAME).recall("v1") is None


def test_proofs_outlive_the_process_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart finds them; their age is limited, also if the clock goes backwards."""
    for _ in range(2):
        Proofs(ObjectStore(tmp_path), tmp_path).of(access(), NAME).remember("v1", DIGEST)
    leave = Proofs(ObjectStore(tmp_path), tmp_path).of(access(), NAME)
    assert leave.recall("v1") is not None
    now = time.time()
    for then in (now + 3700, now - 3700):
        monkeypatch.setattr(time, "time", lambda then=then: then)
        assert leave.recall("v1") is None


def test_a_refusal_takes_back_what_was_proven_before(proofs: Proofs) -> None:
    """Credentials that were refused once are not let in offline, by whatever name; a later yes counts again."""
    leave = proofs.of(access(), NAME)
    leave.remember("v1", DIGEST)
    leave.remember(str(DIGEST), DIGEST)
    leave.forget("v1", all_targets=True)
    assert leave.recall(str(DIGEST)) is None
    leave.remember("v1", DIGEST)
    assert leave.recall("v1") is not None
    assert leave.recall(str(DIGEST)) is None


def test_the_disk_holds_no_secret(proofs: Proofs, tmp_path: Path) -> None:
    """Neither names nor contents tell user, password, repository or tag; the salt is the owner's alone."""
    proofs.of(access(), NAME).remember("secret-tag", DIGEST)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    everything = b"".join(str(path.relative_to(tmp_path)).encode() + path.read_bytes() for path in kept)

    assert len(kept) == 2
    for word in (b"alice", b"sesame", b"models/a", b"secret-tag"):
        assert word not in everything
    assert stat.S_IMODE((tmp_path / "objects" / "salt").stat().st_mode) == 0o600


def test_a_damaged_salt_forgets_everything(proofs: Proofs, tmp_path: Path) -> None:
    """A salt that a power loss cut short is made anew; nothing is proven by it."""
    proofs.of(access(), NAME).remember("v1", DIGEST)
    (tmp_path / "objects" / "salt").write_bytes(b"")
    directory = tmp_path / "objects"
    assert Proofs(ObjectStore(directory), directory).of(access(), NAME).recall("v1") is None
    again = Proofs(ObjectStore(directory), directory).of(access(), NAME)
    again.remember("v1", DIGEST)
    assert again.recall("v1") is not None


class Outage(Shelf):
    """A shelf that raises `error`, if there is one, instead of answering."""

    error: WeightlessError | None = None

    def manifest(self, target: str, **options: Any) -> Answer:
        answer = super().manifest(target, **options)
        if self.error is not None:
            raise self.error
        return answer

    def exists(self, digest: Digest, **options: Any) -> None:
        super().exists(digest, **options)
        if self.error is not None:
            raise self.error


class World:
    def __init__(self, root: Path) -> None:
        self.shelf = Outage()
        self.objects = ObjectStore(root)
        self.proofs = Proofs(self.objects, root)

    def resolve(
        self, target: str = ":v1", credential: Credential | None = ALICE, offline_s: float = 3600.0
    ) -> Resolution:
        reference = Reference.parse(NAME + target)
        leave: Leave = self.proofs.of(access(credential, offline_s=offline_s), reference.name)
        return resolve(reference, self.shelf, self.objects, self.shelf, architecture="arm64", leave=leave)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.shelf.model(made.shelf.file("a.bin", b"aaaa"))
    return made


def test_what_was_mounted_before_is_resolved_offline(world: World) -> None:
    """By tag and by digest, to the same table, saying since when the proof is; the registry is asked once, not for each part."""
    online = world.resolve()
    assert online.proven_at is None
    world.shelf.error = Unavailable("gone")
    for target in (":v1", f"@{online.manifest_digest}"):
        world.shelf.asked.clear()
        offline = world.resolve(target)
        assert offline.encoded == online.encoded
        assert offline.manifest_digest == online.manifest_digest
        assert offline.proven_at is not None
        assert len(world.shelf.asked) == 1


def test_an_index_is_resolved_offline_through_its_child(world: World) -> None:
    """Leave for the index and leave for what was chosen of it are both needed, and both remembered."""
    shelf = world.shelf
    shelf.add(index(shelf.child(shelf.tags["v1"])), tag="all")
    online = world.resolve(":all")
    shelf.error = Unavailable("gone")

    assert world.resolve(":all").encoded == online.encoded
    assert world.resolve(f"@{online.manifest_digest}").encoded == online.encoded


@pytest.mark.parametrize(
    "error",
    [Forbidden("no"), Unauthenticated("who"), NotFound("gone"), Unavailable("too many requests", answered=True)],
)
def test_an_answer_is_final(world: World, error: WeightlessError) -> None:
    """401, 403, 404 and 429 are the registry's word: no remembered one stands in for it, then or afterwards."""
    world.resolve()
    world.shelf.error = error
    with pytest.raises(type(error)):
        world.resolve()
    world.shelf.error = Unavailable("cannot connect")
    if isinstance(error, Unavailable):
        world.resolve()
    else:
        with pytest.raises(Unavailable):
            world.resolve()


def test_others_are_refused_offline(world: World) -> None:
    """Other credentials, an unknown tag, a policy that refuses: each gets what the network said."""
    world.resolve()
    world.shelf.error = Unavailable("cannot connect")
    world.shelf.tags["v2"] = world.shelf.tags["v1"]
    others: list[dict[str, Any]] = [{"credential": None}, {"offline_s": 0.0}, {"target": ":v2"}]
    for options in others:
        with pytest.raises(Unavailable, match="cannot connect"):
            world.resolve(**options)


def test_access_travels_between_versions() -> None:
    """Who does not know the policy ignores it; who does takes its absence for a refusal."""
    encoded = msgspec.json.decode(msgspec.json.encode(access()))
    assert encoded.pop("offline_s") == 3600.0
    assert msgspec.convert(encoded, Access).offline_s == 0.0
