"""How many calls may do slow work at once, so that those that must answer at once always find a thread. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from fuse.errors import InProgress

MAX_SLOW_CALLS: Final = 48
"""At once, those that wait for others included. The rest of the server's threads is for calls that answer at once: with the
registry away, publishes must not keep the liveness probe waiting."""
_MARGIN_S: Final = 1.0
"""How long before the caller's deadline a wait is given up, so that the caller still hears why."""


class Slots:
    """One for all services of a server: they share its threads."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(MAX_SLOW_CALLS)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Raises InProgress when none is free."""
        if not self._free.acquire(blocking=False):
            raise InProgress(
                f"{MAX_SLOW_CALLS} calls wait for registries already", where="plugin", fix="it will be tried again"
            )
        try:
            yield
        finally:
            self._free.release()


def waiting_limit_s(context: grpc.ServicerContext) -> float | None:
    """How long a call may wait for others and still answer its caller."""
    remaining = context.time_remaining()
    # Without a deadline gRPC says None, or a time far beyond what a lock can wait.
    return max(0.0, remaining - _MARGIN_S) if remaining is not None and remaining < 1e6 else None
