"""Names: what may be shown, what is stripped, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact.naming import MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES, clean_path
from fuse.errors import InvalidArtifact


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("config.json", "config.json"),
        ("./a//b/./c/", "a/b/c"),
        ("../../models/a", "models/a"),
        ("./../a", "a"),
        ("a..b/..c/d..", "a..b/..c/d.."),
        ("...", "..."),
        ("weights [v1] {*}?.bin", "weights [v1] {*}?.bin"),
        ("模型/権重.safetensors", "模型/権重.safetensors"),
        ("a\\b", "a\\b"),
        ("x" * MAX_NAME_BYTES, "x" * MAX_NAME_BYTES),
    ],
)
def test_annotations_become_relative_paths(said: str, shown: str) -> None:
    """Leading `../` goes: modctl writes it for models that were packed from elsewhere."""
    assert shown == clean_path(said, where="layer", strip_parents=True)


@pytest.mark.parametrize(
    "said",
    [
        *("", ".", "./", "..", "../..", "/", "/etc/passwd", "//a", "a/../b", "../a/../../b", "a/..", "a\0b", "\0"),
        *("x" * (MAX_NAME_BYTES + 1), "ü" * 128, "/".join("d" * (MAX_DEPTH + 1)), "\ud800", "/".join(["x" * 200] * 21)),
    ],
)
def test_names_that_cannot_be_shown_are_refused(said: str) -> None:
    """With the place that said it, and never a megabyte of the name."""
    with pytest.raises(InvalidArtifact) as caught:
        clean_path(said, where="layer sha256:x", strip_parents=True)
    assert "layer sha256:x" == caught.value.where
    assert len(str(caught.value)) < 1200


def test_parents_are_kept_in_mind_where_nobody_writes_them_honestly() -> None:
    """In archives a leading `../` is an attack and not a habit."""
    with pytest.raises(InvalidArtifact):
        clean_path("../a", where="layer")


@given(
    said=st.one_of(
        st.text(max_size=300), st.lists(st.sampled_from(["..", ".", "", "a", "b" * 255, "é" * 130])).map("/".join)
    )
)
def test_any_text_is_a_safe_path_or_refused(said: str) -> None:
    """A clean path stays below its root, keeps every limit, and is clean already."""
    try:
        path = clean_path(said, where="", strip_parents=True)
    except InvalidArtifact:
        return
    parts = path.split("/")
    assert path
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in path
    assert len(parts) <= MAX_DEPTH
    assert len(path.encode()) < MAX_PATH_BYTES
    assert all(len(part.encode()) <= MAX_NAME_BYTES for part in parts)
    assert path == clean_path(path, where="")
