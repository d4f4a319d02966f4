"""The questions that the kernel asks of a tree, against a model made of dictionaries."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.errors import InvalidArtifact
from fuse.filesystem.table import ROOT, Artifact, Blob, Node, Table
from fuse.filesystem.tree import Attributes, Entry, Extent, Tree

BLOBS = (Blob("sha256:" + "a" * 64, 5000, "type/raw"),)


def tree(*nodes: Node, artifacts: tuple[Artifact, ...] = (), uid: int = 0, gid: int = 0) -> Tree:
    root = Node(ROOT, "", "d", 0o555, 7)
    return Tree(Table(artifacts=artifacts, blobs=BLOBS, nodes=(root, *nodes)), uid, gid)


SMALL = tree(
    Node(1, "sub", "d", 0o555, 1),
    Node(2, "ü", "f", 0o444, 2, 10, 0, 512),
    Node(1, "a", "f", 0o755, 3),
    Node(1, "l", "l", 0o555, 4, target="sub/ü"),
    artifacts=(Artifact(digest="sha256:m", media_type="model"),),
    uid=10,
    gid=20,
)


def test_names_are_found_in_their_directory_only() -> None:
    """As bytes; names that are not UTF-8 do not exist."""
    assert 2 == SMALL.lookup(1, b"sub")
    assert 3 == SMALL.lookup(2, "ü".encode())
    for ino, name in [
        (1, b"\xfc"),
        (1, "ü".encode()),
        (1, b"A"),
        (1, b""),
        (2, b"a"),
        (4, b"a"),
        (1, b"sub/"),
        (1, b"zz"),
    ]:
        assert SMALL.lookup(ino, name) is None


def test_dots_are_the_directory_and_its_parent() -> None:
    """The root's parent is itself."""
    assert (2, 1, 1) == (SMALL.lookup(2, b"."), SMALL.lookup(2, b".."), SMALL.lookup(1, b".."))


def test_attributes_have_types_owners_and_no_write_bits() -> None:
    """Links count as Linux shows them."""
    assert Attributes(
        ino=1, mode=stat.S_IFDIR | 0o555, nlink=3, uid=10, gid=20, size=0, mtime_ns=7
    ) == SMALL.attributes(1)
    assert Attributes(
        ino=3, mode=stat.S_IFREG | 0o444, nlink=1, uid=10, gid=20, size=10, mtime_ns=2
    ) == SMALL.attributes(3)
    assert stat.S_IFREG | 0o555 == SMALL.attributes(4).mode
    assert (stat.S_IFLNK | 0o777, 6) == (SMALL.attributes(5).mode, SMALL.attributes(5).size)
    assert (0, 1) == (SMALL.attributes(4).blocks, SMALL.attributes(3).blocks)


def test_files_are_extents_of_blobs() -> None:
    """An empty one is none."""
    assert Extent(0, 512, 10) == SMALL.extent(3)
    assert -1 == SMALL.extent(4).blob
    assert BLOBS[0] == SMALL.blob(0)
    assert [3, 4] == list(SMALL.files())


def test_xattrs_say_what_a_file_is() -> None:
    """On the artifact's directory, which artifact."""
    assert {
        "user.weightless.digest": BLOBS[0].digest.encode(),
        "user.weightless.media-type": b"type/raw",
        "user.weightless.offset": b"512",
    } == SMALL.xattrs(3)
    assert {"user.weightless.artifact": b"sha256:m", "user.weightless.artifact-type": b"model"} == SMALL.xattrs(1)
    assert {} == SMALL.xattrs(2) == SMALL.xattrs(4) == SMALL.xattrs(5)


def test_paths_targets_and_totals() -> None:
    """For messages, readlink and statfs."""
    assert ("", "sub/ü", "l") == (SMALL.path(1), SMALL.path(3), SMALL.path(5))
    assert "sub/ü".encode() == SMALL.target(5)
    assert (5, 10) == (len(SMALL), SMALL.total_bytes)


@pytest.mark.parametrize("ino", [-1, 0, 6, 2**64])
def test_unknown_inodes_are_key_errors(ino: int) -> None:
    """Negative ones too, which Python would count from the end."""
    for question in (SMALL.attributes, SMALL.extent, SMALL.target, SMALL.path, SMALL.xattrs, SMALL.node):
        with pytest.raises(KeyError):
            question(ino)
    with pytest.raises(KeyError):
        SMALL.lookup(ino, b"a")
    with pytest.raises(KeyError):
        list(SMALL.children(ino))


@pytest.mark.parametrize(
    "nodes",
    [
        (),
        (Node(1, "", "f", 0o444, 0),),
        (Node(1, "", "d", 0o555, 0), Node(2, "a", "d", 0o555, 0)),
        (Node(1, "", "d", 0o555, 0), Node(3, "a", "d", 0o555, 0), Node(2, "b", "d", 0o555, 0)),
        (Node(1, "", "d", 0o555, 0), Node(1, "a", "f", 0o444, 0), Node(2, "b", "f", 0o444, 0)),
        (Node(1, "", "d", 0o555, 0), Node(0, "a", "f", 0o444, 0)),
    ],
)
def test_a_table_that_is_no_tree_is_refused(nodes: tuple[Node, ...]) -> None:
    """No root, rings of parents, files with children."""
    with pytest.raises(InvalidArtifact):
        Tree(Table(artifacts=(), blobs=(), nodes=nodes))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(
        st.tuples(st.integers(0, 50), st.text("abü/".replace("/", ""), min_size=1, max_size=3), st.booleans()),
        max_size=40,
    ),
    cut=st.integers(0, 10),
)
def test_a_tree_answers_as_dictionaries_do(shape: list[tuple[int, str, bool]], cut: int) -> None:
    """Lookups, listings from any cookie, link counts and paths."""
    model: dict[int, dict[str, int]] = {1: {}}
    paths = {1: ""}
    nodes: list[Node] = []
    for which, name, is_directory in shape:
        parent = sorted(model)[which % len(model)]
        if name in model[parent]:
            continue
        ino = len(nodes) + 2
        nodes.append(Node(parent, name, "d" if is_directory else "f", 0o555, 0))
        model[parent][name] = ino
        paths[ino] = f"{paths[parent]}/{name}".lstrip("/")
        if is_directory:
            model[ino] = {}
    asked = tree(*nodes)
    for ino, path in paths.items():
        assert path == asked.path(ino)
        listing = list(asked.children(ino))
        assert model.get(ino, {}) == {name.decode(): child for _, name, child in listing}
        assert len({cookie for cookie, _, _ in listing}) == len(listing)
        rest: list[Entry] = list(asked.children(ino, listing[cut].cookie)) if cut < len(listing) else []
        assert listing[cut + 1 :] == rest
        for name, child in model.get(ino, {}).items():
            assert child == asked.lookup(ino, name.encode())
        if ino in model:
            assert 2 + sum(child in model for child in model[ino].values()) == asked.attributes(ino).nlink
