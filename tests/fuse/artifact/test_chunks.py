"""Chunk indexes: what is written is read, what is not canonical is refused, and what it must list is the layers."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.artifact import chunks
from fuse.artifact.chunks import CHUNK_BYTES, BlobHasher, ChunkDigests
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Descriptor
from fuse.errors import InvalidArtifact

digests = st.binary(min_size=1, max_size=8).map(Digest.of) | st.binary(min_size=1, max_size=8).map(
    lambda content: Digest.of(content, "sha512")
)
sizes = st.integers(CHUNK_BYTES + 1, 9 * CHUNK_BYTES)


def made(size: int, seed: int = 0) -> ChunkDigests:
    count = chunks.chunk_count(size)
    return ChunkDigests(size, b"".join(hashlib.sha256(bytes([seed, number])).digest() for number in range(count)))


def layer(digest: Digest, size: int) -> Descriptor:
    return Descriptor(media_type="x", digest=digest, size=size, annotations={})


def document() -> bytearray:
    return bytearray(
        chunks.encode({Digest.of(b"a"): made(2 * CHUNK_BYTES), Digest.of(b"b"): made(5 * CHUNK_BYTES + 1)})
    )


@given(st.dictionaries(digests, sizes, max_size=6))
def test_what_is_written_is_read(blobs: dict[Digest, int]) -> None:
    """Every index decodes to what was encoded, and is as long as its layers say."""
    index = {digest: made(size, number) for number, (digest, size) in enumerate(blobs.items())}
    content = chunks.encode(index)

    assert index == chunks.decode(content)
    assert chunks.encoded_bytes(blobs) == len(content)
    assert chunks.agrees(chunks.decode(content), [layer(digest, size) for digest, size in blobs.items()])
    assert content == chunks.encode(dict(reversed(index.items())))


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda rest: bytes(document()[:200]) + rest))
def test_nothing_but_an_index_or_an_error_comes_out(content: bytes) -> None:
    """Foreign bytes raise InvalidArtifact and nothing else."""
    try:
        chunks.decode(content)
    except InvalidArtifact:
        return


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"WL"),
        (8, (2).to_bytes(4, "little")),  # another version
        (12, (1).to_bytes(4, "little")),  # other chunks
        (16, (3).to_bytes(4, "little")),  # more blobs than there are
        (16, (1).to_bytes(4, "little")),  # fewer
        (16, (1 << 31).to_bytes(4, "little")),
        (20, b"\1"),  # a reserved field
        (24, b"md5:"),
        (24 + 144, (1).to_bytes(8, "little")),  # a size of one chunk
        (24 + 144, (1 << 62).to_bytes(8, "little")),  # a size that no index holds
        (24 + 144, (3 * CHUNK_BYTES).to_bytes(8, "little")),  # a chunk more than there are digests
    ],
)
def test_what_is_not_canonical_is_refused(at: int, value: bytes) -> None:
    """Wrong magic, versions, counts and sizes; nothing is guessed."""
    content = document()
    content[at : at + len(value)] = value

    with pytest.raises(InvalidArtifact):
        chunks.decode(bytes(content))


def test_length_and_order_are_exact() -> None:
    """A cut, a tail, blobs out of order or twice are refused."""
    content = bytes(document())
    first, second = content[24:184], content[184:344]
    for wrong in (
        content[:-1],
        content + b"\0",
        content[:24] + second + first + content[344:],
        content[:24] + first * 2,
    ):
        with pytest.raises(InvalidArtifact):
            chunks.decode(wrong)


def test_an_index_is_of_all_large_layers_and_no_other() -> None:
    """One that leaves a layer out, adds one, or has another size does not fit."""
    a, b, small = (
        layer(Digest.of(b"a"), 2 * CHUNK_BYTES),
        layer(Digest.of(b"b"), 3 * CHUNK_BYTES),
        layer(Digest.of(b"c"), 5),
    )
    index = {a.digest: made(a.size), b.digest: made(b.size)}

    assert chunks.agrees(index, [b, a, small, a])
    assert not chunks.agrees(index, [a, small])
    assert not chunks.agrees({a.digest: made(a.size)}, [a, b])
    assert not chunks.agrees(index, [a, layer(b.digest, b.size + 1)])


def test_digests_are_given_out_for_proven_bytes_only() -> None:
    """The pass that makes an index compares the whole with the blob's digest."""
    content = bytes(CHUNK_BYTES) + b"tail"
    parts = (content[:CHUNK_BYTES], content[CHUNK_BYTES:])
    good = BlobHasher(Digest.of(content), len(content))
    bad = BlobHasher(Digest.of(b"other"), len(content))
    short = BlobHasher(Digest.of(parts[0]), len(content))
    for part in parts:
        good.add(part)
        bad.add(part)
    short.add(parts[0])

    found = good.finish()
    assert found is not None
    assert found.matches(1, hashlib.sha256(b"tail").digest())
    assert not found.matches(0, hashlib.sha256(b"tail").digest())
    assert bad.finish() is None
    assert short.finish() is None
