"""How much of the suite runs, and from which seed.

`make test` runs a short form from a fixed seed, so that a failure there is the change's; `make faults` (WEIGHTLESS_FAULTS=full)
runs all of it, from a new seed each time. WEIGHTLESS_FAULT_SEED names one to run again.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final, TypeVar

import pytest

FULL: Final = os.environ.get("WEIGHTLESS_FAULTS", "") == "full"
SEED: Final = int(os.environ.get("WEIGHTLESS_FAULT_SEED") or (time.time_ns() % 1_000_000 if FULL else 1))

T = TypeVar("T")

LIMIT: Final = pytest.mark.timeout(1800 if FULL else 180)
only_full: Final = pytest.mark.skipif(not FULL, reason="part of `make faults` only")


def by_scale(*, short: T, full: T) -> T:
    return full if FULL else short


def chance(case: str) -> random.Random:
    """The source of all that is random in a case; printed, so that a failure shows it."""
    print(f"{case}: WEIGHTLESS_FAULT_SEED={SEED}{' WEIGHTLESS_FAULTS=full' if FULL else ''}")
    return random.Random(f"{SEED} {case}")
