"""The inode table: the immutable file tree of one mount, computed once, stored as bytes and served for ever after.

The number of a node in `Table.nodes`, plus one, is its inode number (the root is 1, as FUSE demands). A mount outlives the
program that made its table: a later version serves the stored bytes and never computes them anew, for the kernel holds inode
numbers. So the format is versioned, and a table is known by the digest of its bytes.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

from fuse.errors import InvalidArtifact

VERSION: Final = 1
NEEDS: Final = 1
"""The oldest version of this module that understands a table of this one (docs/ARCHITECTURE.md, Versions)."""
MAX_TABLE_BYTES: Final = 256 * 1024 * 1024
ROOT: Final = 1


class View(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which files of an artifact are shown. Two mounts with equal digests and views share one file system.

    `exclude`: patterns in gitignore syntax, matched against full paths; the last match wins. `exclude_weights` hides model
    weights by name, before the patterns have their say (so that `!keep.safetensors` brings one back).
    """

    exclude: tuple[str, ...] = ()
    exclude_weights: bool = False


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact of the mount, and where its files are put."""

    digest: str
    """Of the manifest that was chosen (not of an index that led to it)."""
    media_type: str
    """Its artifactType, else its config's media type."""
    directory: str = ""
    """Relative to the root of the mount; empty for the root itself."""
    view: View = View()


class Blob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A blob of the registry that holds bytes of files."""

    digest: str
    size: int
    media_type: str


class Node(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A directory, file or symbolic link. Files are one extent of one blob; an empty file may have `blob` -1."""

    parent: int
    """Inode number; the root is its own parent."""
    name: str
    kind: Literal["d", "f", "l"]
    mode: int
    """Permission bits only, never a write bit."""
    mtime_ns: int
    size: int = 0
    blob: int = -1
    """Index into `Table.blobs`."""
    offset: int = 0
    """Where the file's first byte lies in the blob."""
    target: str = ""
    """Of a symbolic link."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    artifacts: tuple[Artifact, ...]
    blobs: tuple[Blob, ...]
    nodes: tuple[Node, ...]
    version: int = VERSION
    needs: int = NEEDS

    @property
    def total_bytes(self) -> int:
        """What must be fetched for every file to be readable: the sizes of all blobs."""
        return sum(blob.size for blob in self.blobs)


_DECODER = msgspec.json.Decoder(Table)


def encode(table: Table) -> bytes:
    return msgspec.json.encode(table)


def decode(content: bytes) -> Table:
    """Raises InvalidArtifact when `content` is no table, is of a newer version, or contradicts itself."""
    try:
        table = _DECODER.decode(content)
    except msgspec.DecodeError as error:
        raise InvalidArtifact(f"not an inode table: {error}") from error
    if table.needs > VERSION:
        raise InvalidArtifact(
            f"inode table of version {table.version}, this program knows {VERSION}", fix="use a newer weightless"
        )
    for ino, node in enumerate(table.nodes, 1):
        if not 1 <= node.parent <= len(table.nodes) or (node.blob >= len(table.blobs)) or node.size < 0:
            raise InvalidArtifact(f"inode table: node {ino} ({node.name!r}) points outside the table")
        if node.blob >= 0 and not 0 <= node.offset <= node.offset + node.size <= table.blobs[node.blob].size:
            raise InvalidArtifact(f"inode table: {node.name!r} lies outside its blob")
    return table


def identity(content: bytes) -> str:
    """The name of an encoded table: `sha256:` and the digest of its bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
