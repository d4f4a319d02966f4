"""Threads that cannot be had: a limit of processes (pids.max of a cgroup, RLIMIT_NPROC) says no for a while, as a full disk does.

That is no fault of whoever wants one, and must leave nothing that counts on a thread which never began.
"""

from __future__ import annotations

import threading

import structlog

_log = structlog.get_logger(__name__)


def begin(thread: threading.Thread) -> bool:
    """Starts a thread. False when the system has no room for it: it has not begun then, and never will."""
    try:
        thread.start()
    except RuntimeError as error:
        _log.error("thread_not_started", thread=thread.name, error=str(error), fix="raise the limit of processes")
        return False
    return True
