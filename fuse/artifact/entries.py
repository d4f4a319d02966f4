"""What layers contribute to the tree, before it is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

MAX_ENTRIES = 100_000
"""Files, links and directories of one artifact."""

Kind = Literal["d", "f", "l"]


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry of an archive. Its path is clean (`fuse.artifact.naming`); "" is the archive's root."""

    path: str
    kind: Kind
    mode: int
    mtime_ns: int
    offset: int = 0
    """Of the first byte of a file's data in the archive."""
    size: int = 0
    target: str = ""
    """Of a symbolic link, as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, link or directory that a layer puts into the tree. None: the layer does not say."""

    path: str
    kind: Kind
    layer: int
    """Index of the layer."""
    mode: int | None = None
    mtime_ns: int | None = None
    offset: int = 0
    size: int = 0
    target: str = ""
