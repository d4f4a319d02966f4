"""Becoming nobody: what a fetcher that root started does before it reads anything that others wrote."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

from fuse import dumps
from fuse.errors import InvalidConfig

_PR_SET_NO_NEW_PRIVS: Final = 38


def give_directory(root: Path, uid: int, gid: int) -> None:
    """Makes `root` and what is in it the user's, the top last: a run that was cut short begins anew. No link is followed.

    Only of a directory that is root's, or the user's already: in anybody else's, who could exchange a file for a hard link to one
    of the system's, root gives nothing away. Raises InvalidConfig.
    """
    status = root.stat()
    if status.st_uid not in (0, uid):
        raise InvalidConfig(
            f"the cache directory belongs to user {status.st_uid}",
            where=str(root.resolve()),
            fix="name another one; root and users do not share a cache",
        )
    if (status.st_uid, status.st_gid) != (uid, gid):
        for _, directories, files, fd in os.fwalk(root, topdown=False, follow_symlinks=False):
            for name in directories:
                os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
            for name in files:
                # No file of a cache has a second name; one that has is somebody's trap.
                if os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink == 1:
                    os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    root.chmod(0o700)
    os.chown(root, uid, gid)


def drop(uid: int, gid: int) -> None:
    """Becomes `uid` for good, with no group but `gid`. Raises OSError."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def confine() -> None:
    """No new privileges, no core dump and no tracer (credentials are in memory), and as many descriptors as we may have."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    dumps.forbid()
    os.umask(0o077)
    with suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
