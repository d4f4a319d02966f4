"""How large benchmarks are: in full, or small, which tries the code and whose figures mean nothing (`WEIGHTLESS_BENCH=small`)."""

from __future__ import annotations

import os
from typing import Final, TypeVar

T = TypeVar("T")

FULL: Final = os.environ.get("WEIGHTLESS_BENCH", "full") == "full"


def by_scale(*, small: T, full: T) -> T:
    return full if FULL else small
