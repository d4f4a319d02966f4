"""One tree of many layers: collisions, directories, links, limits, views, and the same table each time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.artifact import build as building
from fuse.artifact.build import build
from fuse.artifact.digest import Digest
from fuse.artifact.entries import Entry, Kind
from fuse.artifact.manifest import Descriptor
from fuse.errors import InvalidArtifact, InvalidRequest
from fuse.filesystem.table import Artifact, Table, View, encode
from fuse.filesystem.tree import Tree

LAYERS = [
    Descriptor(media_type=f"type/{number}", digest=Digest.of(b"%d" % number), size=1000, annotations={})
    for number in range(4)
]


def entry(path: str, layer: int = 0, kind: Kind = "f", size: int = 10, **fields: object) -> Entry:
    return Entry(path=path, kind=kind, layer=layer, size=size if kind == "f" else 0, **fields)  # type: ignore[arg-type]


def link(path: str, target: str) -> Entry:
    return entry(path, kind="l", target=target)


EVERYTHING = View()


def built(*entries: Entry, view: View = EVERYTHING, directory: str = "") -> Table:
    artifact = Artifact(digest=str(Digest.of(b"m")), media_type="model", directory=directory, view=view)
    return build(artifact, LAYERS, entries, mtime_ns=5)


def shown(table: Table) -> list[str]:
    tree = Tree(table)
    return sorted(tree.path(ino) + ("/" if tree.node(ino).kind == "d" else "") for ino in range(2, len(tree) + 1))


def test_directories_are_implied() -> None:
    """With the default mode and the artifact's time."""
    table = built(entry("a/b/c"), entry("a/d"), entry("e"))

    assert ["a/", "a/b/", "a/b/c", "a/d", "e"] == shown(table)
    assert {(0o555, 5)} == {(node.mode, node.mtime_ns) for node in table.nodes if node.kind == "d"}


def test_modes_lose_their_write_bits() -> None:
    """And what nobody said, or nobody could read, is 0444 and 0555."""
    table = built(
        entry("a", mode=0o644),
        entry("b", mode=0o755),
        entry("c"),
        entry("d", mode=0o222),
        entry("e/f", mode=0o600),
        entry("g", kind="d", mode=0o700),
    )

    modes = {node.name: node.mode for node in table.nodes}
    assert {"": 0o555, "a": 0o444, "b": 0o555, "c": 0o444, "d": 0o444, "e": 0o555, "f": 0o400, "g": 0o500} == modes


def test_times_are_the_files_own_or_the_artifacts() -> None:
    """0 is a time too: AIKit writes 1970."""
    times = {node.name: node.mtime_ns for node in built(entry("a", mtime_ns=0), entry("b")).nodes}

    assert {"": 5, "a": 0, "b": 5} == times


def test_what_is_said_of_a_directory_replaces_what_was_implied() -> None:
    """Whichever comes first."""
    said = entry("d", kind="d", mode=0o755, mtime_ns=9)
    for entries in ([entry("d/x"), said], [said, entry("d/x")]):
        assert [(0o555, 9)] == [(node.mode, node.mtime_ns) for node in built(*entries).nodes if node.name == "d"]


def test_the_same_file_twice_is_one() -> None:
    """Same path, same bytes: a tool named one layer twice."""
    assert ["a"] == shown(built(entry("a", 1), entry("a", 1)))
    assert ["a", "l"] == shown(built(entry("a", 1), link("l", "a"), link("l", "a")))
    assert ["e", "x"] == shown(built(entry("x"), entry("e", 1, size=0), entry("e", 2, size=0)))


@pytest.mark.parametrize(
    "entries",
    [
        (entry("a", 1), entry("a", 2)),
        (entry("a", 1, offset=0), entry("a", 1, offset=512)),
        (entry("a", 1, size=1), entry("a", 1, size=2)),
        (entry("a"), entry("a/b")),
        (entry("a/b"), entry("a")),
        (entry("a"), entry("a", kind="d")),
        (entry("a", kind="d"), entry("a")),
        (entry("a"), link("a", "b")),
        (link("a", "b"), link("a", "c"), entry("b")),
        (link("a", "b"), entry("a/x"), entry("b/y")),
    ],
)
def test_names_that_clash_are_refused(entries: tuple[Entry, ...]) -> None:
    """With the path and the layers that said it."""
    with pytest.raises(InvalidArtifact, match="'a'") as caught:
        built(*entries)
    assert "layer sha256:" in caught.value.where


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("l", "f"),
        ("d/l", "../f"),
        ("l", "./d/../f"),
        ("l", "nowhere"),
        ("l", "d/nowhere/../../../x"),
        ("l", "l"),
        ("d/l", ".."),
        ("l", "f/.."),
    ],
)
def test_links_that_stay_inside_are_kept(path: str, target: str) -> None:
    """Also those that lead nowhere, or round."""
    table = built(entry("f"), entry("d/g"), link(path, target))

    assert target == next(node.target for node in table.nodes if node.kind == "l")


@pytest.mark.parametrize(
    "links",
    [
        [("l", "/etc/passwd")],
        [("l", "..")],
        [("l", "d/../../x")],
        [("d/l", "../../x")],
        [("d/up", ".."), ("l", "d/up/../x")],
        [("d/up", "../d/.."), ("d/e/l", "../up/..")],
        [("a", "b"), ("b", "c"), ("c", "d/../..")],
    ],
)
def test_links_that_lead_out_are_refused(links: list[tuple[str, str]]) -> None:
    """Through other links too, as the kernel would go."""
    with pytest.raises(InvalidArtifact, match="leads out"):
        built(entry("f"), entry("d/g"), entry("d/e/h"), *[link(path, target) for path, target in links])


def test_links_cannot_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of links that double at each step is given up."""
    monkeypatch.setattr(building, "MAX_LINK_STEPS", 10_000)
    links = [link(f"{number:03}", f"{number + 1:03}/" * 40) for number in range(900)]
    with pytest.raises(InvalidArtifact, match="too long"):
        built(entry("f"), entry("d/g"), *links, link("999", "d/" + "../d/" * 2000))


def test_blobs_keep_the_manifests_order_and_only_those_in_use() -> None:
    """An empty file needs no blob."""
    table = built(entry("z", 0), entry("a", 2), entry("b", 3, size=0), entry("c", 0))

    assert ["type/0", "type/2"] == [blob.media_type for blob in table.blobs]
    assert {"z": 0, "a": 1, "b": -1, "c": 0} == {node.name: node.blob for node in table.nodes if node.kind == "f"}


def test_two_layers_that_are_one_blob_are_one() -> None:
    """The same bytes under two names."""
    artifact = Artifact(digest="d", media_type="m")
    table = build(artifact, [LAYERS[0], LAYERS[0]], [entry("a", 0), entry("b", 1)], mtime_ns=0)

    assert 1 == len(table.blobs)


def test_an_artifact_without_files_is_refused() -> None:
    """Nothing, or directories alone."""
    for entries in ((), (entry("d", kind="d"),), (link("l", "x"),)):
        with pytest.raises(InvalidArtifact, match="no files"):
            built(*entries)


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Implied directories count."""
    monkeypatch.setattr(building, "MAX_ENTRIES", 5)
    assert 6 == len(built(entry("a/b/c/d/e")).nodes)
    with pytest.raises(InvalidArtifact, match="more than 5"):
        built(entry("a/b/c/d/e/f"))


def test_a_view_leaves_out_files_and_what_only_they_needed() -> None:
    """Their directories and blobs; directories that were empty stay."""
    entries = (entry("w/a.safetensors", 0), entry("w/deep/b.bin", 1), entry("config.json", 2), entry("empty", kind="d"))

    table = built(*entries, view=View(exclude_weights=True))

    assert ["config.json", "empty/"] == shown(table)
    assert ["type/2"] == [blob.media_type for blob in table.blobs]
    assert ["config.json", "empty/", "w/", "w/deep/", "w/deep/b.bin"] == shown(
        built(*entries, view=View(exclude_weights=True, exclude=("!*.bin",)))
    )
    assert ["w/", "w/a.safetensors"] == shown(built(*entries, view=View(exclude=("config.json", "deep/", "empty"))))


def test_a_view_of_nothing_is_refused() -> None:
    """An empty volume is a mistake in the patterns."""
    with pytest.raises(InvalidRequest, match="every file"):
        built(entry("a"), view=View(exclude=("*",)))
    with pytest.raises(InvalidRequest, match="every file"):
        built(entry("a.gguf"), link("b", "a.gguf"), view=View(exclude_weights=True))


def test_an_artifact_can_be_put_into_a_directory() -> None:
    """Several artifacts may share a volume one day; its links still may not leave it."""
    table = built(entry("a/b"), directory="x/y")

    assert ["x/", "x/y/", "x/y/a/", "x/y/a/b"] == shown(table)
    with pytest.raises(InvalidArtifact):
        built(entry("a"), link("l", "../z"), directory="x")


NAMES = st.text("ab", min_size=1, max_size=2)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@settings(max_examples=200, deadline=None)
@given(
    paths=st.lists(st.tuples(PATHS, st.sampled_from(["f", "f", "d"]), st.integers(0, 3)), min_size=1, max_size=10),
    seed=st.integers(0, 1000),
)
def test_a_table_is_the_same_whatever_the_order(paths: list[tuple[str, Kind, int]], seed: int) -> None:
    """Byte for byte, or refused both times; and no path is lost or invented."""
    entries = [entry(path, layer, kind, mode=0o555, mtime_ns=1) for path, kind, layer in paths]
    shuffled = list(entries)
    random.Random(seed).shuffle(shuffled)
    try:
        table = built(*entries)
    except InvalidArtifact:
        with pytest.raises(InvalidArtifact):
            built(*shuffled)
        return
    again = built(*shuffled)
    if {(one.path, one.kind) for one in entries if one.kind == "d"}:
        # Which layer implied a directory does not show.
        assert shown(table) == shown(again)
    assert encode(table) == encode(again)
    expected = set()
    for path, kind, _ in paths:
        parts = path.split("/")
        expected |= {"/".join(parts[:depth]) + "/" for depth in range(1, len(parts))}
        expected.add(f"{path}/" if kind == "d" else path)
    assert sorted(expected) == shown(table)
