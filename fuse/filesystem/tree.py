"""What a mount looks like: the questions that lookups, readdir, reads and xattrs ask of an inode table.

Knows neither pyfuse3 nor blocks nor who reads. Names are bytes here, as the kernel gives them (UTF-8 in the table). A Tree is
immutable once made, so any number of threads may ask. It adds a few bytes an inode to the table: one array of children, sorted by
parent and name, in which names are found by bisection.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from fuse.errors import InvalidArtifact
from fuse.filesystem.table import ROOT, Blob, Node, Table

_TYPE_BITS: Final = {"d": stat.S_IFDIR, "f": stat.S_IFREG}
XATTR_PREFIX: Final = "user.weightless."


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What stat(2) tells. `mode` holds the type's bits too."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int

    @property
    def blocks(self) -> int:
        """In units of 512 bytes, whatever the block size (stat(2))."""
        return (self.size + 511) // 512


class Extent(NamedTuple):
    """Where a file's bytes lie: `blob` is an index into the table's blobs; -1 for an empty file."""

    blob: int
    offset: int
    size: int


class Entry(NamedTuple):
    """One name of a directory. Reading on after this entry starts at `cookie`."""

    cookie: int
    name: bytes
    ino: int


class Tree:
    """Raises KeyError for an inode number that the table does not have; the kernel never asks for one."""

    def __init__(self, table: Table, uid: int = 0, gid: int = 0) -> None:
        nodes = table.nodes
        if not nodes or nodes[0].kind != "d":
            raise InvalidArtifact("inode table without a root directory")
        self.table = table
        self.uid = uid
        self.gid = gid
        self._nodes = nodes
        self._children = array(
            "I", sorted(range(2, len(nodes) + 1), key=lambda ino: (nodes[ino - 1].parent, nodes[ino - 1].name))
        )
        # The children of inode i are self._children[self._first[i] : self._first[i + 1]].
        self._first = array("I", bytes(4 * (len(nodes) + 2)))
        self._subdirectories = array("I", bytes(4 * (len(nodes) + 1)))
        self.total_bytes = 0
        """The sum of the files' sizes (not of the blobs')."""
        for ino, node in enumerate(nodes, 1):
            self.total_bytes += node.size if node.kind == "f" else 0
            if ino != ROOT:
                # A parent comes before its children, so no chain of parents can be a ring.
                if not 1 <= node.parent < ino or nodes[node.parent - 1].kind != "d":
                    raise InvalidArtifact(f"inode table: node {ino} ({node.name!r}) has no directory as parent")
                self._first[node.parent + 1] += 1
                self._subdirectories[node.parent] += node.kind == "d"
        for ino in range(1, len(nodes) + 2):
            self._first[ino] += self._first[ino - 1]

    def __len__(self) -> int:
        """The number of inodes, for statfs."""
        return len(self._nodes)

    def node(self, ino: int) -> Node:
        if not 1 <= ino <= len(self._nodes):
            raise KeyError(ino)
        return self._nodes[ino - 1]

    def blob(self, index: int) -> Blob:
        return self.table.blobs[index]

    def lookup(self, ino: int, name: bytes) -> int | None:
        """The inode called `name` in directory `ino`; `.` and `..` are names here as well. None: there is no such name."""
        if name == b".":
            return ino
        if name == b"..":
            return self.node(ino).parent
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        self.node(ino)
        last = self._first[ino + 1]
        found = bisect_left(self._children, text, self._first[ino], last, key=lambda child: self._nodes[child - 1].name)
        if found == last or self._nodes[self._children[found] - 1].name != text:
            return None
        return self._children[found]

    def attributes(self, ino: int) -> Attributes:
        node = self.node(ino)
        return Attributes(
            ino=ino,
            # Nobody asks for the mode of a link itself; every Linux file system shows 0777.
            mode=stat.S_IFLNK | 0o777 if node.kind == "l" else _TYPE_BITS[node.kind] | (node.mode & 0o555),
            nlink=2 + self._subdirectories[ino] if node.kind == "d" else 1,
            uid=self.uid,
            gid=self.gid,
            size=len(node.target.encode()) if node.kind == "l" else node.size,
            mtime_ns=node.mtime_ns,
        )

    def children(self, ino: int, start: int = 0) -> Iterator[Entry]:
        """The names of a directory, without `.` and `..`, that follow the cookie `start` (0: from the first)."""
        self.node(ino)
        first, last = self._first[ino], self._first[ino + 1]
        for position in range(first + max(start, 0), last):
            child = self._children[position]
            yield Entry(position - first + 1, self._nodes[child - 1].name.encode(), child)

    def extent(self, ino: int) -> Extent:
        node = self.node(ino)
        return Extent(node.blob if node.size else -1, node.offset, node.size)

    def target(self, ino: int) -> bytes:
        """What a symbolic link points to."""
        return self.node(ino).target.encode()

    def path(self, ino: int) -> str:
        """From the root, for people to read: `a/b`; empty for the root itself."""
        names: list[str] = []
        node = self.node(ino)
        while ino != ROOT:
            names.append(node.name)
            ino = node.parent
            node = self.node(ino)
        return "/".join(reversed(names))

    def files(self) -> Iterator[int]:
        """The inode numbers of all regular files, in the table's order."""
        return (ino for ino, node in enumerate(self._nodes, 1) if node.kind == "f")

    def xattrs(self, ino: int) -> dict[str, bytes]:
        """What a file is: the blob that holds it, and where; on an artifact's directory, the artifact."""
        node = self.node(ino)
        if node.kind == "f" and node.blob >= 0:
            blob = self.table.blobs[node.blob]
            return {
                f"{XATTR_PREFIX}digest": blob.digest.encode(),
                f"{XATTR_PREFIX}media-type": blob.media_type.encode(),
                f"{XATTR_PREFIX}offset": str(node.offset).encode(),
            }
        if node.kind == "d":
            path = self.path(ino)
            for artifact in self.table.artifacts:
                if artifact.directory == path:
                    return {
                        f"{XATTR_PREFIX}artifact": artifact.digest.encode(),
                        f"{XATTR_PREFIX}artifact-type": artifact.media_type.encode(),
                    }
        return {}
