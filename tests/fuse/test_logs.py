"""Logging is for people; no process may depend on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import structlog
from fuse import logs
logs.configure("test")
log = structlog.get_logger()
for number in range(100):
    log.error("line_written", number=number)
try:
    raise ValueError
except ValueError:
    log.exception("line_written")
print("lives")
"""


@pytest.mark.parametrize("gone", [False, True])
def test_a_log_that_nobody_takes_ends_nothing(gone: bool) -> None:
    """A disk that is full, and a reader that has gone: who logs goes on."""
    with open("/dev/full", "w") as full:
        program = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE if gone else full
        )
        if program.stderr is not None:
            program.stderr.close()
        with program:
            assert program.stdout is not None
            assert program.stdout.read() == b"lives\n"
