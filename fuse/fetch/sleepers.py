"""Lanes that have nothing to do: the one that was last at work is the first to be woken.

Its connection is open and its code is in the processor's cache; those that sleep longest may have no connection yet. (A
`threading.Condition` wakes the one that has slept longest: a reader of one block after another would go round all lanes.)
"""

from __future__ import annotations

import threading


class Sleepers:
    """All methods are called with the lock held."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._asleep: list[threading.Condition] = []

    def __len__(self) -> int:
        return len(self._asleep)

    def sleep(self, limit_s: float | None) -> None:
        """Lets the lock go until somebody wakes the caller, or `limit_s` is over."""
        bed = threading.Condition(self._lock)
        self._asleep.append(bed)
        if not bed.wait(limit_s) and bed in self._asleep:
            self._asleep.remove(bed)

    def wake(self) -> None:
        """One of them, if there is any."""
        if self._asleep:
            self._asleep.pop().notify()

    def wake_all(self) -> None:
        while self._asleep:
            self.wake()
