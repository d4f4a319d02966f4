"""One thread that waits for all the sockets of a holder: how the death of a worker or keeper is noticed without polling.

Callbacks run on that thread and must not block. A descriptor is removed before it is closed, by whoever closes it.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

import structlog

READABLE = select.EPOLLIN
HUNG_UP = select.EPOLLRDHUP
"""Only the peer's end, not its messages."""

_log = structlog.get_logger()


class Watch:
    """Calls back when a descriptor has something to say."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._wake, READABLE)
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def add(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks[fd] = callback
            self._epoll.register(fd, events)

    def once(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back when `fd` has something to say, one time only; the same descriptor again for the next time."""
        with self._lock:
            known = fd in self._callbacks
            self._callbacks[fd] = callback
            (self._epoll.modify if known else self._epoll.register)(fd, READABLE | select.EPOLLONESHOT)

    def remove(self, fd: int) -> None:
        """A callback that is already running is not waited for. Removing what is not there is no error."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None and not self._closing:
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Ends the thread, after the callback that runs now."""
        with self._lock:
            self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closing:
            for fd, _ in self._epoll.poll():
                with self._lock:
                    callback = self._callbacks.get(fd)
                if callback is None:
                    continue
                try:
                    callback()
                except Exception:  # noqa: BLE001
                    # One broken callback must not blind the holder to all others.
                    _log.exception("watch_failed")
                    self.remove(fd)


def ready(fd: int) -> bool:
    """Whether reading `fd` would not block now."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
