"""Paths of files: from what an artifact says to names that a file system may show.

A path is relative, its components joined by `/`, none of them `.` or `..`. Nothing is ever written under such a name on the
host, so a bad one could not escape; it is refused all the same, for the tools in a pod may copy the tree. Pure.
"""

from __future__ import annotations

from typing import Final

from fuse.errors import InvalidArtifact

MAX_DEPTH: Final = 64
MAX_NAME_BYTES: Final = 255
"""NAME_MAX of Linux."""
MAX_PATH_BYTES: Final = 4096
"""PATH_MAX of Linux."""


def clean_path(text: str, *, where: str, strip_parents: bool = False, allow_root: bool = False) -> str:
    """`text` as a path of the tree. Raises InvalidArtifact, naming `where` it was said.

    `strip_parents` drops leading `../`: modctl writes such paths for models that were packed from another directory. `allow_root`
    lets `./` stand for the root itself, which is "" then.
    """
    if "\0" in text:
        raise _refused(text, "contains a NUL character", where)
    if text.startswith("/"):
        raise _refused(text, "is absolute", where)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if strip_parents:
        first = next((position for position, part in enumerate(parts) if part != ".."), len(parts))
        parts = parts[first:]
    if ".." in parts:
        raise _refused(text, "leads out of its directory by '..'", where)
    if not parts and not (allow_root and text):
        raise _refused(text, "is empty", where)
    if len(parts) > MAX_DEPTH:
        raise _refused(text, f"is {len(parts)} levels deep, more than {MAX_DEPTH}", where)
    try:
        if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
            raise _refused(text, f"has a name of more than {MAX_NAME_BYTES} bytes", where)
        path = "/".join(parts)
        if len(path.encode()) >= MAX_PATH_BYTES:
            raise _refused(text, f"has more than {MAX_PATH_BYTES - 1} bytes", where)
    except UnicodeEncodeError:
        raise _refused(text, "is not valid Unicode", where) from None
    return path


def _refused(text: str, why: str, where: str) -> InvalidArtifact:
    shown = text if len(text) <= 120 else f"{text[:117]}..."
    return InvalidArtifact(
        f"the file name {shown!a} {why}", where=where, fix="pack the artifact again with plain relative paths"
    )
