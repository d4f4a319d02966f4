"""From a reference to a table: what is asked of the registry, what is remembered, what is proven."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.cache.objects import ObjectStore
from fuse.errors import Cancelled, Corrupt, Forbidden, InvalidArtifact, InvalidRequest, NotAModel, NotFound, Unavailable
from fuse.fetch import resolve as resolving
from fuse.fetch.resolve import Resolution, resolve
from fuse.filesystem.table import View, decode
from fuse.filesystem.tree import Tree
from fuse.registry.access import Access, Endpoint
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from tests.fuse.artifact.test_tar import archive, named
from tests.support.artifacts import (
    EMPTY_CONFIG,
    FILEPATH,
    LAYER_TAR,
    MODEL_CONFIG,
    RAW,
    TAR,
    TITLE,
    Answer,
    Bytes,
    Memory,
    Shelf,
    descriptor,
    index,
    manifest,
)
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import Encoding, pack_model

METADATA = "org.cncf.model.file.metadata+json"
NAME = "r.example.com/models/a"


def resolved(
    shelf: Shelf, memory: Memory | None = None, target: str = ":v1", name: str = NAME, **options: Any
) -> Resolution:
    reference = Reference.parse(name + target)
    return resolve(reference, shelf, memory or Memory(), shelf, architecture="arm64", **options)


def contents(resolution: Resolution, shelf: Shelf) -> dict[str, bytes]:
    """Every file, read as a worker would: by its extent."""
    tree = Tree(resolution.table)
    found = {}
    for ino in tree.files():
        blob, offset, size = tree.extent(ino)
        found[tree.path(ino)] = shelf.blobs[Digest.parse(tree.blob(blob).digest)].read(offset, size) if size else b""
    return found


def test_a_modelpack_becomes_its_files() -> None:
    """Raw layers and tars, with times from annotation, member and config."""
    shelf = Shelf()
    digest = shelf.model(
        shelf.file(
            "weights/a.safetensors", b"aaaa", **{METADATA: '{"mode":420,"mtime":"1970-01-01T00:00:02Z","size":99}'}
        ),
        shelf.file("empty", b""),
        shelf.layer(TAR, archive((named("config.json", mtime=3), b"{}"), (named("tok/merges.txt", mtime=4), b"m"))),
        config=b'{"descriptor":{"createdAt":"1970-01-01T00:00:05Z"},"config":{},"modelfs":{}}',
    )

    found = resolved(shelf)

    assert {"weights/a.safetensors": b"aaaa", "empty": b"", "config.json": b"{}", "tok/merges.txt": b"m"} == contents(
        found, shelf
    )
    assert digest == found.manifest_digest
    assert f"{NAME}:v1@{digest}" == str(found.reference)
    assert 4 == found.files
    assert found.table == decode(found.encoded)
    seconds = {node.name: node.mtime_ns // 10**9 for node in found.table.nodes}
    assert {"": 5, "weights": 5, "a.safetensors": 2, "empty": 5, "config.json": 3, "tok": 5, "merges.txt": 4} == seconds


def test_the_size_of_a_raw_file_is_its_descriptors() -> None:
    """Not what the metadata says: tools get it wrong."""
    shelf = Shelf()
    shelf.model(shelf.file("a", b"aaaa", **{METADATA: '{"size":99}'}))

    assert [4] == [node.size for node in resolved(shelf).table.nodes if node.kind == "f"]


def test_an_artifact_of_oras_becomes_its_files_by_title() -> None:
    """Whatever their types; the config is not asked for."""
    shelf = Shelf()
    shelf.generic(
        shelf.layer(LAYER_TAR, b"hello", **{TITLE: "hello.txt"}),
        shelf.layer("application/json", b"{}", **{TITLE: "sub/config.json"}),
    )

    found = resolved(shelf)

    assert {"hello.txt": b"hello", "sub/config.json": b"{}"} == contents(found, shelf)
    assert ["GET v1"] == shelf.asked
    assert "application/vnd.unknown.artifact.v1" == found.media_type


def test_what_is_known_costs_the_proof_alone() -> None:
    """A tag asks for its manifest, a digest for leave to pull it; nothing else goes out, and the table is the same bytes."""
    shelf, memory = Shelf(), Memory()
    digest = shelf.model(shelf.file("a", b"a"), shelf.layer(TAR, archive((named("b"), b"b"))))
    first = resolved(shelf, memory)
    shelf.asked.clear()
    shelf.reads.clear()

    again = resolved(shelf, memory)
    pinned = resolved(shelf, memory, f"@{digest}")
    both = resolved(shelf, memory, f":moved@{digest}")

    assert ["GET v1", f"HEAD {digest}", f"HEAD {digest}"] == shelf.asked
    assert [] == shelf.reads
    assert first.encoded == again.encoded == pinned.encoded == both.encoded
    assert f"{NAME}@{digest}" == str(pinned.reference)


def test_what_is_known_is_not_shown_without_the_right_to_pull_it() -> None:
    """Neither by tag nor by digest."""
    shelf, memory = Shelf(), Memory()
    digest = shelf.model(shelf.file("a", b"a"))
    resolved(shelf, memory)
    shelf.forbidden.add(digest)

    for target in (":v1", f"@{digest}"):
        with pytest.raises(Forbidden):
            resolved(shelf, memory, target)


def test_an_index_of_ones_own_opens_nobody_elses_manifest() -> None:
    """The child is proven with these credentials too: anybody can push an index that names a digest."""
    shelf, memory = Shelf(), Memory()
    secret = shelf.model(shelf.file("a", b"a"), tag="secret")
    resolved(shelf, memory, ":secret")
    shelf.add(index(shelf.child(secret)), tag="mine")
    shelf.forbidden.add(secret)

    with pytest.raises(Forbidden):
        resolved(shelf, memory, ":mine")


def test_a_tag_that_moved_gives_the_new_tree() -> None:
    """Nothing is remembered by tag."""
    shelf, memory = Shelf(), Memory()
    shelf.model(shelf.file("a", b"a"))
    resolved(shelf, memory)
    shelf.model(shelf.file("b", b"b"))

    assert {"b": b"b"} == contents(resolved(shelf, memory), shelf)


def test_views_and_directories_have_tables_of_their_own() -> None:
    """Of one artifact; a second view walks no archive again."""
    shelf, memory = Shelf(), Memory()
    shelf.model(shelf.layer(TAR, archive((named("a.bin"), b"a"), (named("b.json"), b"b"))))
    resolved(shelf, memory)
    shelf.reads.clear()

    view = resolved(shelf, memory, view=View(exclude=("*.bin",)))
    moved = resolved(shelf, memory, directory="x/y")

    assert {"b.json": b"b"} == contents(view, shelf)
    assert {"x/y/a.bin": b"a", "x/y/b.json": b"b"} == contents(moved, shelf)
    assert ("x/y", View(exclude=("*.bin",))) == (moved.table.artifacts[0].directory, view.table.artifacts[0].view)
    assert [] == shelf.reads


def test_one_repositorys_archives_say_nothing_to_another() -> None:
    """A range is proven by no digest, so a server that lies poisons only its own users."""
    liar, memory = Shelf(), Memory()
    content = archive((named("good"), b"right"))
    layer = liar.layer(TAR, Bytes(archive((named("evil"), b"wrong"))), Digest.of(content), size=len(content))
    digest = liar.model(layer)
    honest = Shelf(tags=liar.tags, manifests=liar.manifests, blobs=dict(liar.blobs))
    honest.add_blob(content)

    assert ["evil"] == list(contents(resolved(liar, memory, name="evil.example.com/a"), liar))
    assert {"good": b"right"} == contents(resolved(honest, memory, f"@{digest}"), honest)


def test_a_registry_that_knows_every_digest_shows_no_strangers_manifest() -> None:
    """Its leave to pull is worth nothing for what it cannot give itself."""
    shelf, memory = Shelf(), Memory()
    digest = shelf.model(shelf.file("secret-name", b"x"))
    resolved(shelf, memory)
    liar = Shelf()
    liar.exists = lambda digest, **_: None  # type: ignore[method-assign]

    with pytest.raises(NotFound):
        resolved(liar, memory, f"@{digest}", name="evil.example.com/a")


def test_an_artifact_that_claims_more_than_any_model_is_refused() -> None:
    """Each claimed MiB costs 8 bytes of index before a byte has come: of a few layers, all disks."""
    shelf = Shelf()
    layers = [shelf.layer(RAW, Bytes(b"x"), Digest.of(b"%d" % i), size=1 << 42, **{TITLE: f"{i}"}) for i in range(5)]
    shelf.model(*layers)
    with pytest.raises(InvalidArtifact, match="claim"):
        resolved(shelf, Memory())


def test_an_index_leads_to_its_model() -> None:
    """The pinned reference names the manifest, and what is known of both is proven for both."""
    shelf, memory = Shelf(), Memory()
    model = shelf.model(shelf.file("a", b"a"), tag="")
    other = shelf.generic(shelf.layer("a/b", b"x", **{TITLE: "x"}), tag="")
    children = index(shelf.child(other, platform={"os": "linux", "architecture": "arm64"}), shelf.child(model))
    top = shelf.add(index(shelf.child(shelf.add(children), mediaType=children["mediaType"])), tag="v1")

    found = resolved(shelf, memory)
    assert model == found.manifest_digest
    assert f"{NAME}:v1@{model}" == str(found.reference)
    shelf.asked.clear()
    resolved(shelf, memory, f"@{top}")
    assert {"HEAD"} == {asked.split()[0] for asked in shelf.asked}
    assert f"HEAD {top}" == shelf.asked[0]
    assert f"HEAD {model}" == shelf.asked[-1]


def test_indexes_in_indexes_come_to_an_end() -> None:
    """Three deep."""
    shelf = Shelf()
    digest = shelf.model(shelf.file("a", b"a"), tag="")
    for _ in range(4):
        document = index(shelf.child(digest, mediaType=shelf.manifests[digest].media_type))
        digest = shelf.add(document)
    shelf.tags["v1"] = digest

    with pytest.raises(InvalidArtifact, match="indexes within indexes"):
        resolved(shelf)


def test_a_damaged_memory_is_replaced() -> None:
    """Manifests, tables and maps that are not what was put."""
    shelf, memory = Shelf(), Memory()
    digest = shelf.model(shelf.layer(TAR, archive((named("b"), b"b"))))
    first = resolved(shelf, memory)
    for key in memory.objects:
        memory.objects[key] = b'{"schemaVersion":2}'

    assert first.encoded == resolved(shelf, memory, f"@{digest}").encoded
    shelf.reads.clear()
    assert first.encoded == resolved(shelf, memory, f"@{digest}").encoded
    assert [] == shelf.reads


def tampered(shelf: Shelf) -> None:
    digest = shelf.model(shelf.file("a", b"a"))
    shelf.manifests[digest] = Answer(shelf.manifests[digest].content + b" ", "", digest)


def two_sizes(shelf: Shelf) -> None:
    layer = shelf.file("a", b"a")
    shelf.model(layer, {**layer, "size": 2, "annotations": {FILEPATH: "b"}})


def lying_child(shelf: Shelf) -> None:
    digest = shelf.model(shelf.file("a", b"a"), tag="")
    shelf.add(index(shelf.child(digest, size=5)), tag="v1")


def huge_config(shelf: Shelf) -> None:
    config = descriptor(MODEL_CONFIG, Digest.of(b""), 10**12)
    shelf.add(manifest(shelf.file("a", b"a"), config=config), tag="v1")


def short_tar(shelf: Shelf) -> None:
    shelf.model(shelf.layer(TAR, archive((named("a"), b"x" * 2000))[:1024]))


def clash(shelf: Shelf) -> None:
    shelf.model(shelf.file("a", b"1"), shelf.file("a", b"2"))


def no_layers(shelf: Shelf) -> None:
    shelf.model()


@pytest.mark.parametrize(
    "broken", [tampered, two_sizes, lying_child, huge_config, short_tar, clash, no_layers], ids=lambda one: one.__name__
)
def test_a_broken_artifact_is_refused_by_reference(broken: Callable[[Shelf], None]) -> None:
    """The error names the reference that the user wrote, and what in it is broken; no table is remembered."""
    shelf, memory = Shelf(), Memory()
    broken(shelf)

    with pytest.raises((InvalidArtifact, Corrupt)) as caught:
        resolved(shelf, memory)
    assert caught.value.where.startswith(f"{NAME}:v1")
    assert "sha256:" in str(caught.value)
    assert not [key for kind, key in memory.objects if kind == "tables"]


def test_what_is_no_model_is_refused_by_media_type() -> None:
    """With the reference."""
    shelf = Shelf()
    image = shelf.layer("application/vnd.oci.image.config.v1+json", b"{}")
    shelf.add(manifest(shelf.layer(LAYER_TAR + "+gzip", b"x"), config=image, artifactType=None), tag="v1")

    with pytest.raises(NotAModel, match=r"application/vnd\.oci\.image\.config\.v1\+json") as caught:
        resolved(shelf)
    assert caught.value.where.startswith(f"{NAME}:v1")


def test_a_compressed_layer_is_refused_before_anything_is_read() -> None:
    """Even if it is the last."""
    shelf = Shelf()
    shelf.model(shelf.layer(TAR, archive((named("a"), b"a"))), shelf.layer(TAR + "+gzip", b"x"))

    with pytest.raises(NotAModel, match=r"tar\+gzip"):
        resolved(shelf)
    assert [] == shelf.reads


def test_the_registrys_errors_come_through() -> None:
    """As they are: absent, or away for now."""
    with pytest.raises(NotFound):
        resolved(Shelf())
    shelf = Shelf(fault=Unavailable("no answer", where="r.example.com"))
    shelf.model(shelf.layer(TAR, archive((named("a"), b"a"))))
    with pytest.raises(Unavailable, match="no answer"):
        resolved(shelf)


def test_a_reference_that_the_registrys_error_names_is_not_said_twice() -> None:
    """A manifest that is too large is refused before it is read, by the part that knows the reference."""
    shelf = Shelf(fault=InvalidArtifact("the manifest is larger than 4 MiB", where=f"{NAME}:v1"))
    shelf.model(shelf.layer(TAR, archive((named("a"), b"a"))))
    with pytest.raises(InvalidArtifact) as caught:
        resolved(shelf)
    assert f"{NAME}:v1" == caught.value.where


@pytest.mark.parametrize(
    "options",
    [{"view": View(exclude=("!",))}, {"directory": "../x"}, {"directory": "/x"}],
    ids=["pattern", "parent", "absolute"],
)
def test_bad_parameters_are_refused_before_anything_is_asked(options: dict[str, Any]) -> None:
    """They are the caller's."""
    shelf = Shelf()
    with pytest.raises((InvalidRequest, InvalidArtifact)):
        resolved(shelf, **options)
    assert [] == shelf.asked


def test_a_view_of_nothing_is_the_callers_mistake() -> None:
    """And is told as such."""
    shelf = Shelf()
    shelf.model(shelf.file("a.safetensors", b"a"))
    with pytest.raises(InvalidRequest):
        resolved(shelf, view=View(exclude_weights=True))


def test_heads_of_archives_are_read_at_the_same_time() -> None:
    """Thirty shards cost as long as a few; the tree is in the manifest's order all the same."""
    together = 4
    meeting = threading.Barrier(together)

    class Waiting(Shelf):
        def _read(self, digest: Digest, offset: int, length: int) -> bytes:
            meeting.wait(10)
            return super()._read(digest, offset, length)

    shelf = Waiting()
    shelf.model(*[shelf.layer(TAR, archive((named(f"{number}"), b"%d" % number))) for number in range(3 * together)])

    found = resolved(shelf)

    assert {f"{number}": b"%d" % number for number in range(3 * together)} == contents(found, shelf)
    assert 3 * together == len(shelf.reads)


def test_one_blob_is_read_by_one_thread_though_many_layers_are_it() -> None:
    """And once: the others find its map. The same file under many names is one extent."""

    class Slow(Shelf):
        def _read(self, digest: Digest, offset: int, length: int) -> bytes:
            threading.Event().wait(0.1)  # for the others to come in, if they may
            return super()._read(digest, offset, length)

    shelf = Slow()
    layer = shelf.layer(TAR, archive((named("a"), b"a")))
    shelf.model(*[{**layer, "annotations": {FILEPATH: f"{number}/a"}} for number in range(20)])

    found = resolved(shelf)

    assert {f"{number}/a": b"a" for number in range(20)} == contents(found, shelf)
    assert 1 == len(shelf.reads) == len(found.table.blobs)


def test_resolving_can_be_given_up() -> None:
    """While archives are read: nothing further is asked, and no thread stays."""
    given_up = threading.Event()

    class Quitting(Shelf):
        def read(self, digest: Digest, size: int, offset: int, length: int, /) -> bytes:
            given_up.set()
            return super().read(digest, size, offset, length)

    shelf = Quitting()
    shelf.model(*[shelf.layer(TAR, archive((named(f"{number}"), b"x" * 100_000))) for number in range(100)])

    with pytest.raises(Cancelled):
        resolved(shelf, cancel=given_up)
    assert len(shelf.reads) <= resolving.READERS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("resolve")]


def test_too_many_entries_are_refused_before_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand archives of a hundred thousand members each never come together in memory."""
    monkeypatch.setattr(resolving, "MAX_ENTRIES", 50)
    shelf = Shelf()
    many = [(named(f"{number}"), b"") for number in range(10)]
    shelf.model(*[shelf.layer(TAR, archive(*many, (named(f"x{layer}"), b"x"))) for layer in range(200)])

    with pytest.raises(InvalidArtifact, match="more than 50"):
        resolved(shelf)
    assert len(shelf.reads) <= 4 * resolving.READERS


def test_what_layers_hold_together_is_bounded_where_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One archive that many layers name: each has room for it, all together do not, and none is kept beyond that."""
    monkeypatch.setattr(resolving, "MAX_ENTRIES", 50)
    shelf = Shelf()
    layer = shelf.layer(TAR, archive(*[(named(f"{number}"), b"") for number in range(20)]))
    shelf.model(*[layer] * 4 * resolving.READERS)
    kept: list[int] = []
    take = resolving._Room.take

    def counted(room: resolving._Room, found: list[Any]) -> None:
        take(room, found)
        kept.append(len(found))

    monkeypatch.setattr(resolving._Room, "take", counted)
    with pytest.raises(InvalidArtifact, match="more than 50"):
        resolved(shelf)
    assert sum(kept) <= 50


def test_names_of_all_layers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each archive keeps within the limit, all of them do not."""
    monkeypatch.setattr(resolving, "MAX_PATHS_BYTES", 300)
    shelf = Shelf()
    shelf.model(*[shelf.layer(TAR, archive((named(f"{number}" * 90), b"x"))) for number in range(4)])
    with pytest.raises(InvalidArtifact, match="names"):
        resolved(shelf)


def test_a_generic_artifacts_config_is_not_asked_for() -> None:
    """It could be anything, of any size."""
    shelf = Shelf()
    config = descriptor(EMPTY_CONFIG, Digest.of(b"{}"), 10**12)
    shelf.add(
        manifest(shelf.layer(RAW, b"x", **{TITLE: "a"}), config=config, artifactType="application/vnd.example"),
        tag="v1",
    )

    assert {"a": b"x"} == contents(resolved(shelf), shelf)


class RangedReader:
    """Ranged reads straight from a registry, without a cache between."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def read(self, digest: Digest, size: int, offset: int, length: int, /) -> bytes:
        with self._repository.open_blob(digest, size, offset, length) as stream:
            found = bytearray(length)
            view = memoryview(found)
            assert offset == stream.start
            while view and (count := stream.readinto(view)):
                view = view[count:]
            return bytes(found)


@pytest.mark.parametrize("encoding", ["raw", "tar"])
@pytest.mark.parametrize("legacy", [False, True], ids=["cncf", "cnai"])
def test_a_packed_directory_comes_back_through_a_real_registry(
    tmp_path: Path, encoding: Encoding, legacy: bool
) -> None:
    """Over HTTP, with the real object store: first the manifest, the config and a head of each tar; then the proof alone."""
    files = {"config.json": b"{}", "w/model-1.safetensors": b"w" * 3_000_000, "w/model-2.safetensors": b"v" * 2_000_000}
    model = tmp_path / "model"
    for name, content in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    packed = pack_model(model, encoding=encoding, legacy=legacy)
    store = ObjectStore(tmp_path / "objects")
    with FaultyRegistry() as registry, Transport(environment={}) as transport:
        packed.serve(registry, "models/a", "v1")
        reference = Reference.parse(f"{registry.host}/models/a:v1")
        endpoint = Endpoint(url=f"{registry.url}/v2", origin=True, named=True)
        repository = Repository(reference, Access(registry=reference.host, endpoints=(endpoint,)), transport)
        reader = RangedReader(repository)

        first = resolve(reference, repository, store, reader)
        cold = registry.statistics()
        registry.reset_statistics()
        again = resolve(reference, repository, store, reader)
        pinned = resolve(first.reference, repository, store, reader)
        warm = registry.statistics()

        tree = Tree(first.table)
        for ino in tree.files():
            blob, offset, size = tree.extent(ino)
            found = tree.blob(blob)
            assert files[tree.path(ino)] == reader.read(Digest.parse(found.digest), found.size, offset, size)
        transport.close_lane(threading.get_ident())

    assert packed.digest == first.manifest_digest
    assert set(files) == {tree.path(ino) for ino in tree.files()}
    assert cold.requests <= (2 if encoding == "raw" else 5)
    assert cold.bytes_sent < 300_000
    assert 2 == warm.requests
    assert 0 == warm.bytes_sent
    assert first.encoded == again.encoded == pinned.encoded
