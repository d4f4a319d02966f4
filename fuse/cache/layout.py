"""Which directory is a cache, and of which version.

Below the root: `version`; `blobs` (`fuse.cache.keys`); `quarantine`, with what did not match its digest; `objects`
(`fuse.cache.objects`); and the fetcher's own files, whose names begin with `fetcher.`. Directories are 0700.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fuse.cache.keys import ALGORITHMS
from fuse.errors import InvalidConfig

VERSION: Final = 1


def make(root: Path) -> None:
    """Makes what is missing of it. Raises as `examine`, and OSError."""
    if not examine(root):
        temporary = root / ".version"
        temporary.write_text(f"{VERSION}\n")
        temporary.replace(root / "version")
    for directory in (*(root / "blobs" / algorithm for algorithm in ALGORITHMS), root / "quarantine"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def examine(root: Path) -> bool:
    """Whether `root` is a cache of this version already; changes nothing.

    Raises InvalidConfig when it is of another version, or holds things that are not ours.
    """
    where = str(root.resolve())
    try:
        text = (root / "version").read_text().strip()
    except FileNotFoundError:
        text = ""
    if text.isdecimal():
        if int(text) != VERSION:
            raise InvalidConfig(
                f"the cache is of version {text}, this program knows version {VERSION}",
                where=where,
                fix="use a newer weightless, or another --cache-dir",
            )
        return True
    foreign = [entry.name for entry in os.scandir(root) if not _is_ours(entry.name)]
    if foreign:
        raise InvalidConfig(
            f"the directory is no cache but holds other things ({min(foreign)!r})",
            where=where,
            fix="name an empty or new directory as the cache directory",
        )
    return False


def _is_ours(name: str) -> bool:
    return name.startswith(("fetcher.", ".version")) or name in (
        "version",
        "blobs",
        "quarantine",
        "objects",
        "lost+found",
    )
