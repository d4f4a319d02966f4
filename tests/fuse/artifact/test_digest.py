"""Digests are names of files and proofs of bytes: nothing else may pass for one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact.digest import Digest
from fuse.errors import InvalidArtifact


@given(content=st.binary(max_size=100), algorithm=st.sampled_from(["sha256", "sha512"]))
def test_a_digest_is_read_back_as_written(content: bytes, algorithm: str) -> None:
    """And matches its content and no other."""
    digest = Digest.of(content, algorithm)

    assert digest == Digest.parse(str(digest))
    assert digest.matches(content)
    assert not digest.matches(content + b"x")
    hasher = digest.hasher()
    hasher.update(content)
    assert digest.hex == hasher.hexdigest() == hashlib.new(algorithm, content).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        *("", "sha256", "sha256:", ":" + "a" * 64, "a" * 64),
        *("sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "g" * 64),
        *("sha512:" + "a" * 64, "md5:" + "a" * 32, "SHA256:" + "a" * 64, "sha256:../" + "a" * 61),
        *("sha256:" + "a" * 64 + "\n", " sha256:" + "a" * 64, "sha256:" + "٣" * 64),
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    """Unknown algorithms, wrong lengths, capitals, and anything that could be a path."""
    with pytest.raises(InvalidArtifact, match="not a digest"):
        Digest.parse(text)


@given(text=st.text(max_size=200))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    """Nothing but InvalidArtifact comes out, and what is accepted is what was written."""
    try:
        found = str(Digest.parse(text))
    except InvalidArtifact:
        return
    assert text == found
