"""Chunk indexes: the sha256 of every 4 MiB of an artifact's large layers, so that a range is proven before the whole is there.

The format, for others, is docs/chunk-index.md. An artifact has exactly one index of a version: layers of more than one chunk, in
the order of their digests (smaller ones are verified whole, by their own digest). So whoever knows the layers knows how long the
index must be before a byte of it is fetched, and pushing it again changes nothing.

Pure; does not know registries. A terabyte has 8 MiB of digests, which are kept as they came, not as objects.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fuse.artifact.digest import Digest
from fuse.artifact.manifest import MAX_LAYERS, Descriptor
from fuse.errors import InvalidArtifact

CHUNK_BYTES: Final = 4 * 1024 * 1024
VERSION: Final = 1
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
"""What an artifact of about 8 TiB has; one without an index is mounted all the same."""

_MAGIC: Final = b"wlchunks"
_HEADER: Final = struct.Struct("<8sIIII")
_ENTRY: Final = struct.Struct("<144sQQ")
_SUM_BYTES: Final = 32


class ChunkDigests:
    """The digests of one blob's chunks. Immutable, and equal when they are."""

    __slots__ = ("_sums", "mark", "size")

    def __init__(self, size: int, sums: bytes | memoryview) -> None:
        """`sums`: 32 bytes a chunk; kept as they are. Raises ValueError when they are not as many as `size` bytes have chunks."""
        self._sums = memoryview(sums)
        if len(self._sums) != _SUM_BYTES * chunk_count(size):
            raise ValueError("not one digest a chunk")
        self.size: Final = size
        self.mark: Final = int.from_bytes(hashlib.sha256(self._sums).digest()[:8], "little") or 1
        """Stands for these digests; never 0."""

    def matches(self, chunk: int, sha256: bytes) -> bool:
        return self._sums[chunk * _SUM_BYTES : (chunk + 1) * _SUM_BYTES] == sha256

    @property
    def sums(self) -> memoryview:
        return self._sums

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkDigests) and self.size == other.size and self._sums == other._sums

    def __hash__(self) -> int:
        return hash((self.size, self.mark))


class BlobHasher:
    """Chunk digests and the digest of the whole, in one pass over a blob's bytes."""

    def __init__(self, digest: Digest, size: int) -> None:
        self._digest = digest
        self._size = size
        self._whole = digest.hasher()
        self._sums = bytearray()

    def add(self, chunk: bytes | memoryview) -> None:
        """The next chunk; all but the last have CHUNK_BYTES."""
        self._whole.update(chunk)
        self._sums += hashlib.sha256(chunk).digest()

    def finish(self) -> ChunkDigests | None:
        """The digests; None when the bytes are not the blob's."""
        if self._whole.hexdigest() != self._digest.hex or len(self._sums) != _SUM_BYTES * chunk_count(self._size):
            return None
        return ChunkDigests(self._size, bytes(self._sums))


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def indexed(layers: Iterable[Descriptor]) -> dict[Digest, int]:
    """What an index of these layers lists: digest and size of each that has more than one chunk, in order."""
    large = {layer.digest: layer.size for layer in layers if layer.size > CHUNK_BYTES}
    return {digest: large[digest] for digest in sorted(large, key=str)}


def encoded_bytes(blobs: Mapping[Digest, int]) -> int:
    """How long the index of `indexed` blobs is."""
    return _HEADER.size + sum(_ENTRY.size + _SUM_BYTES * chunk_count(size) for size in blobs.values())


def encode(blobs: Mapping[Digest, ChunkDigests]) -> bytes:
    """The document. Raises InvalidArtifact when it would be longer than anybody reads."""
    length = encoded_bytes({digest: chunks.size for digest, chunks in blobs.items()})
    if length > MAX_INDEX_BYTES or len(blobs) > MAX_LAYERS:
        raise InvalidArtifact(f"its chunk index would take {length} bytes, more than {MAX_INDEX_BYTES}")
    ordered = sorted(blobs, key=str)
    parts = [_HEADER.pack(_MAGIC, VERSION, CHUNK_BYTES, len(ordered), 0)]
    parts += [_ENTRY.pack(str(digest).encode(), blobs[digest].size, 0) for digest in ordered]
    parts += [bytes(blobs[digest].sums) for digest in ordered]
    return b"".join(parts)


def decode(content: bytes) -> dict[Digest, ChunkDigests]:
    """The digests of each blob, which share the memory of `content`. Raises InvalidArtifact for what is not canonical."""
    found: dict[Digest, ChunkDigests] = {}
    try:
        found.update(_decoded(memoryview(content)))
    except (struct.error, UnicodeDecodeError) as error:
        raise _invalid(f"it is cut short or damaged ({error})") from None
    return found


def agrees(found: Mapping[Digest, ChunkDigests], layers: Iterable[Descriptor]) -> bool:
    """Whether `found` is the index of these layers: of all that it must list, with their sizes, and of nothing else."""
    return {digest: chunks.size for digest, chunks in found.items()} == indexed(layers)


def _decoded(content: memoryview) -> Iterator[tuple[Digest, ChunkDigests]]:
    if len(content) > MAX_INDEX_BYTES:
        raise _invalid(f"it has {len(content)} bytes, more than {MAX_INDEX_BYTES}")
    magic, version, chunk_bytes, count, reserved = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise _invalid("it does not begin as one")
    if version != VERSION or chunk_bytes != CHUNK_BYTES or reserved:
        raise _invalid(f"version {version} with chunks of {chunk_bytes} bytes is not known")
    at = _HEADER.size + count * _ENTRY.size
    if count > MAX_LAYERS or at > len(content):
        raise _invalid(f"it claims {count} blobs")
    before = ""
    for number in range(count):
        name, size, reserved = _ENTRY.unpack_from(content, _HEADER.size + number * _ENTRY.size)
        digest = Digest.parse(name.rstrip(b"\0").decode())
        length = _SUM_BYTES * chunk_count(size)
        if size <= CHUNK_BYTES or reserved or length > len(content) - at or str(digest) <= before:
            raise _invalid(f"the entry of {digest} is wrong or out of order")
        before = str(digest)
        yield digest, ChunkDigests(size, content[at : at + length])
        at += length
    if at != len(content):
        raise _invalid(f"{len(content) - at} bytes follow its end")


def _invalid(what: str) -> InvalidArtifact:
    return InvalidArtifact(f"not a chunk index: {what}", fix="push it anew with `weightless index`")
