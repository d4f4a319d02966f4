"""What it means when the system refuses a directory that is to hold things of ours: the cache, the run and state directories.

The directory is the administrator's choice, so a refusal is a matter of configuration; a full disk is not.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from fuse.errors import InvalidConfig, NoSpace

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def unusable(error: OSError, what: str, where: Path, *, choice: str) -> NoSpace | InvalidConfig:
    """The error for a directory that `error` says cannot be used. `what` names it, `choice` is where another can be named."""
    if error.errno in _FULL:
        fix = f"free space there, or name a directory on another disk: {choice}"
        return NoSpace(f"the disk of {what} is full", where=str(where), fix=fix)
    match error.errno:
        case errno.EROFS:
            why, fix = "it lies on a read-only file system", f"name another: {choice}"
        case errno.ENOTDIR | errno.EEXIST:
            why, fix = "it, or a part of its path, is a file", f"move the file away, or name another: {choice}"
        case errno.EACCES | errno.EPERM:
            user = os.geteuid()
            why, fix = f"user {user} may not write there", f"give that user the right, or name another: {choice}"
        case _:
            why, fix = error.strerror or str(error), f"name another: {choice}"
    return InvalidConfig(f"{what} cannot be used: {why}", where=str(where), fix=fix)
