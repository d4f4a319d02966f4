"""Ending a fetcher that no longer answers, and nobody else.

A fetcher is killed if it is the process at the other end of our socket and holds the lock of our cache directory. Its own word
for who it is does not count: it reads what strangers wrote. The kernel's does, by SO_PEERCRED, and a pidfd stays the same process
when its number is used again.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from fuse import wire
from fuse.mounting import process

_SO_PEERPIDFD: Final = 77
"""Linux 6.5."""
_DEATH_LIMIT_S: Final = 5.0

_log = structlog.get_logger()


def peer_pidfd(sock: socket.socket) -> int:
    """A pidfd of the process that listens at the other end; the caller owns it. Raises OSError when it is gone."""
    with suppress(OSError):
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    return os.pidfd_open(wire.peer_credentials(sock)[0])


def evict(pidfd: int, pid: int, lock: Path, reason: str) -> bool:
    """Kills the process if it holds `lock`; whether it is gone."""
    if not _holds(pid, lock):
        _log.error("fetcher_not_ours", pid=pid, reason=reason, fix="end it; another is started then")
        return False
    _log.warning("fetcher_wedged", pid=pid, reason=reason)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        _log.error("fetcher_not_ours", pid=pid, reason="it is another user's", fix="end it; another is started then")
        return False
    if process.wait_for_pidfd(pidfd, _DEATH_LIMIT_S):
        return True
    _log.error("fetcher_unkillable", pid=pid, fix="see what the disk of the cache is doing")
    return False


def _holds(pid: int, lock: Path) -> bool:
    """Whether the process has the lock file open. One that lets nobody but root look is believed: it listens in our directory."""
    try:
        ours = lock.stat()
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return True
    except OSError:
        return False
    for link in links:
        with suppress(OSError):
            if os.path.samestat(link.stat(), ours):
                return True
    return False
