"""The one table from our errors to errno. Nothing else in this package chooses a number for a failure.

Temporary faults have an entry only because a table has no holes: a read waits for them and never fails, since a loader that
maps a file dies of EIO (SIGBUS). What cannot heal is EIO whatever its cause; the volume's condition and the log say which it
was.
"""

from __future__ import annotations

import errno
from typing import Final

from fuse.errors import WeightlessError

ERRNOS: Final[dict[str, int]] = {
    "internal": errno.EIO,
    "invalid_reference": errno.EINVAL,
    # A registry that calls our request wrong (400, 405, 416 …): the reader did nothing that would be EINVAL.
    "invalid_request": errno.EIO,
    "invalid_config": errno.EIO,
    # Not ENOENT, EACCES: the name is there and the reader may read it; it is the bytes that cannot be had.
    "not_found": errno.EIO,
    "unauthenticated": errno.EIO,
    "forbidden": errno.EIO,
    "address_refused": errno.EIO,
    "unavailable": errno.EIO,
    "not_a_model": errno.EIO,
    "invalid_artifact": errno.EIO,
    "corrupt": errno.EIO,
    "unverified": errno.EIO,
    # Not ENOSPC: a reader can do nothing about a cache.
    "no_space": errno.EIO,
    "cache_failed": errno.EIO,
    "conflict": errno.EBUSY,
    "in_progress": errno.EBUSY,
    "cancelled": errno.EINTR,
    "mount_failed": errno.EIO,
    "missing": errno.EIO,
}


def errno_of(error: WeightlessError) -> int:
    return ERRNOS.get(error.kind, errno.EIO)
