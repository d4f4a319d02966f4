"""Waiting for what another process does: polling with a deadline, the only waiting that tests do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, within_s: float = 20.0) -> T:
    """The first true value of `condition`; AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + within_s
    pause_s = 0.005
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what} (last: {value!r})"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)
