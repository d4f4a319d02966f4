"""The table that the fault suite prints at the end of a run: a pytest plugin.

With xdist the suite runs in one of the worker processes, and its conftest is not loaded where the summary is printed; so its
rows are told to the process that prints, and this is a plugin of the whole run.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

_ROWS = pytest.StashKey[list[str]]()
_KEY = "weightless-faults"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Only a process that ran something of the suite has the module.
    arena = sys.modules.get("tests.faults.arena")
    rows = [account.row for account in arena.ACCOUNTS] if arena is not None else []
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is None:
        session.config.stash[_ROWS] += rows
    else:
        output[_KEY] = rows


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """xdist: a worker process has ended; one that crashed has told nothing."""
    node.config.stash[_ROWS] += getattr(node, "workeroutput", {}).get(_KEY, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash[_ROWS]
    if not rows:
        return
    from tests.faults import arena, scale  # not sooner: only then is there anything to say

    form = "full" if scale.FULL else "short"
    terminalreporter.section(f"faults, {form} form, WEIGHTLESS_FAULT_SEED={scale.SEED}, load {os.getloadavg()[0]:.1f}")
    for row in [arena.HEADING, *rows]:
        terminalreporter.write_line(row)
