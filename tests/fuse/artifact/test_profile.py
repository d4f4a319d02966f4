"""Profiles: what one says, and that a hostile one says nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact import profile
from fuse.artifact.digest import Digest
from fuse.artifact.profile import BLOCK_BYTES, MAX_PROFILE_BYTES, MOST_RUNS, Profile
from fuse.errors import InvalidArtifact

A, B, C = (str(Digest.of(name)) for name in (b"a", b"b", b"c"))
BLOBS = [(A, 10 * BLOCK_BYTES), (B, 3 * BLOCK_BYTES + 1), (C, 5)]
RUNS = ((1, 2, 2), (0, 4, 6), (1, 0, 1))
LOAD = profile.made(BLOBS, RUNS, learned_at=1_700_000_000)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(profile.encode(LOAD)) | fields).encode()


def test_it_comes_back_as_it_was() -> None:
    """With the blobs that it names, and no others."""
    again = profile.decode(profile.encode(LOAD))

    assert again == LOAD
    assert {A, B} == {blob.digest for blob in again.blobs}
    assert 9 == again.blocks
    assert RUNS == profile.runs_of(again, BLOBS)


def test_a_mount_with_other_blobs_gets_what_is_its_own() -> None:
    """By digest and size, whatever the numbers; a blob that is there twice is the first one."""
    assert ((0, 2, 2), (0, 0, 1)) == profile.runs_of(LOAD, [(B, 3 * BLOCK_BYTES + 1), (C, 5), (B, 3 * BLOCK_BYTES + 1)])
    assert ((1, 4, 6),) == profile.runs_of(LOAD, [(B, 7), (A, 10 * BLOCK_BYTES)])
    assert () == profile.runs_of(LOAD, [])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 5000,
        changed(needs=2),
        changed(learned_at=-1),
        changed(learned_at=10**12),
        changed(block_bytes=4096),
        changed(runs=[]),
        changed(runs=[[0, 0, 1]] * 2),
        changed(runs=[[0, 0, 3], [1, 0, 1], [0, 2, 1]]),
        changed(runs=[[2, 0, 1]]),
        changed(runs=[[-1, 0, 1]]),
        changed(runs=[[0, -1, 2]]),
        changed(runs=[[0, 0, 0]]),
        changed(runs=[[0, 0, -1]]),
        changed(runs=[[0, 3, 2]]),
        changed(runs=[[0, 0, 1.5]]),
        changed(runs=[[0, 0, 10**30]]),
        changed(runs=[[0, 0]]),
        changed(blobs=[{"digest": A, "size": 5}, {"digest": A, "size": 6}]),
        changed(blobs=[{"digest": "sha256:../..", "size": 5}]),
        changed(blobs=[{"digest": A, "size": 1 << 60}]),
        changed(blobs=[{"digest": A, "size": 0}]),
        changed(blobs=[{"digest": A, "size": BLOCK_BYTES << 20}], runs=[[0, at, 1] for at in range(MOST_RUNS + 1)]),
        changed(padding="x" * MAX_PROFILE_BYTES),
    ],
)
def test_what_contradicts_itself_is_refused(content: bytes) -> None:
    """Before anybody acts on it."""
    with pytest.raises(InvalidArtifact):
        profile.decode(content)


def test_what_a_later_version_adds_is_passed_over() -> None:
    """As long as it says that this one can read it."""
    assert json.loads(profile.encode(LOAD)) | {"version": 7} == json.loads(
        profile.encode(profile.decode(changed(version=7, loader="vllm")))
    )


@pytest.mark.parametrize("runs", [(), ((3, 0, 1),), ((-1, 0, 1),), ((0, 10, 1),), ((0, 0, 2), (0, 1, 1))])
def test_runs_that_are_none_of_the_loads_make_no_profile(runs: profile.Runs) -> None:
    """They come from a process that is not trusted."""
    with pytest.raises(InvalidArtifact):
        profile.made(BLOBS, runs, learned_at=0)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from([A, B]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*Profile.__struct_fields__, "digest", "size"]), inner, max_size=6)
        ),
        max_leaves=20,
    )
)
def test_any_document_is_refused_or_keeps_within_its_blobs(document: object) -> None:
    """Never another exception, never a block that its own blobs do not have."""
    for content in (json.dumps(document).encode(), changed(runs=document), changed(blobs=document)):
        try:
            found = profile.decode(content)
        except InvalidArtifact:
            continue
        named = [(blob, block) for blob, first, blocks in found.runs for block in range(first, first + blocks)]
        assert len(named) == len(set(named)) == found.blocks
        assert all(block * BLOCK_BYTES < found.blobs[blob].size for blob, block in named)
