"""What the fault suite needs of the machine, and the table that it prints at its end."""

from __future__ import annotations

import os
import platform

import pytest

from tests.conftest import need
from tests.faults import arena, scale


@pytest.fixture(autouse=True)
def _resend(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kernel"):
        major, minor = (int(part) for part in platform.release().split(".")[:2])
        need((major, minor) >= (6, 9), "taking over a mount without a failed read needs kernel 6.9")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not arena.ACCOUNTS:
        return
    form = "full" if scale.FULL else "short"
    terminalreporter.section(f"faults, {form} form, WEIGHTLESS_FAULT_SEED={scale.SEED}, load {os.getloadavg()[0]:.1f}")
    terminalreporter.write_line(arena.HEADING)
    for account in arena.ACCOUNTS:
        terminalreporter.write_line(account.row)
