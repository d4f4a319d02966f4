"""What a worker gives up before it looks at anything that others wrote, and the limits it sets itself. Once a process."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from typing import Final

from fuse.errors import Missing

_PR_SET_NO_NEW_PRIVS: Final = 38
_M_ARENA_MAX: Final = -8


def drop(uid: int | None, gid: int | None) -> None:
    """Becomes `uid` and `gid` for good (None keeps them), and never gains a privilege again.

    Raises Missing when the system refuses, or when the way back would be open.
    """
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if gid is not None and gid != os.getegid():
            os.setgroups([])
            os.setresgid(gid, gid, gid)
        if uid is not None and uid != os.geteuid():
            # From user 0 this clears all capabilities as well (capabilities(7)).
            os.setresuid(uid, uid, uid)
    except PermissionError as error:
        raise Missing(f"may not become user {uid}, group {gid}", fix="start it as root or as that user") from error
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Missing(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")
    if uid:
        with suppress(PermissionError):
            os.setresuid(0, 0, 0)
            raise Missing("user 0 could be regained")


def set_limits() -> None:
    """As many open files as allowed (two a blob), and few memory arenas: one a thread would cost more than all the rest."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with suppress(AttributeError):  # musl has no mallopt
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
