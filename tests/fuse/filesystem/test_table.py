"""The table's bytes: read back as written, and refused when they contradict themselves."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.errors import InvalidArtifact
from fuse.filesystem.table import ROOT, Artifact, Blob, Node, Table, View, decode, encode, identity

ROOT_NODE = Node(ROOT, "", "d", 0o555, 0)
BLOB = Blob("sha256:" + "a" * 64, 100, "type")


def table(*nodes: Node, version: int = 1, needs: int = 1) -> Table:
    artifact = Artifact(digest="sha256:m", media_type="m", view=View(exclude=("*.bin",)))
    return Table(artifacts=(artifact,), blobs=(BLOB,), nodes=(ROOT_NODE, *nodes), version=version, needs=needs)


@given(
    files=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
            st.integers(0, 100),
            st.integers(0, 2**63 - 1),
        )
    )
)
def test_a_table_is_read_back_as_written(files: list[tuple[str, int, int]]) -> None:
    """And the same table has the same identity."""
    written = table(*[Node(ROOT, name, "f", 0o444, mtime, size, 0, 100 - size) for name, size, mtime in files])

    assert written == decode(encode(written))
    assert identity(encode(written)) == identity(encode(decode(encode(written))))


@pytest.mark.parametrize(
    "broken",
    [
        table(Node(9, "a", "f", 0o444, 0)),
        table(Node(0, "a", "f", 0o444, 0)),
        table(Node(ROOT, "a", "f", 0o444, 0, 1, 1)),
        table(Node(ROOT, "a", "f", 0o444, 0, 101, 0)),
        table(Node(ROOT, "a", "f", 0o444, 0, 50, 0, 51)),
        table(Node(ROOT, "a", "f", 0o444, 0, 50, 0, -1)),
        table(Node(ROOT, "a", "f", 0o444, 0, -1)),
        table(version=2, needs=2),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(broken: Table) -> None:
    """Files outside their blob, parents outside the table, another version."""
    with pytest.raises(InvalidArtifact):
        decode(encode(broken))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", msgspec.json.encode({"nodes": []})])
def test_what_is_no_table_is_refused(content: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(InvalidArtifact):
        decode(content)


def test_a_tables_total_is_that_of_its_blobs() -> None:
    """What must be fetched, not what is shown."""
    assert 100 == table().total_bytes
