"""`weightless doctor`: what is wrong on this node, each with its cure.

It changes nothing, and dials only where a reference is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import typer

from fuse import logs
from fuse.errors import InvalidReference, WeightlessError
from weightless import console, wiring
from weightless.doctor.examination import examine_node
from weightless.doctor.finding import Finding, failed, ok
from weightless.options import Given, Settings, settle

_STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True)
class Attempt:
    """Settings, and what was wrong with the file that they should have come from."""

    settings: Settings
    error: WeightlessError | None = None


def attempt(given: Given) -> Attempt:
    """Where the file cannot be used, that is a finding, and the rest is looked at by options and defaults."""
    try:
        return Attempt(settle(given))
    except WeightlessError as error:
        return Attempt(settle(given, without_file=True), error)


def run(attempted: Attempt, reference: str | None, *, json: bool) -> None:
    """Ends with exit code 1 when something is broken. Raises InvalidReference."""
    if reference is not None:
        _check(reference)
    logs.configure("doctor", attempted.settings.log_level if attempted.settings.log_level_given else "error")
    first = ok("configuration", "no fault") if attempted.error is None else failed("configuration", attempted.error)
    findings = [first, *examine_node(attempted.settings, reference)]
    if json:
        console.say(msgspec.json.format(msgspec.json.encode(findings)).decode())
    else:
        _show(findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _check(reference: str) -> None:
    try:
        wiring.check_reference(reference)
    except InvalidReference as error:
        raise error.again(where=f"REFERENCE {error.where}") from None


def _show(findings: list[Finding]) -> None:
    from rich.text import Text

    drawn = console.table("check", "state", "what is the case", "cure", whole=("check", "state"))
    for finding in findings:
        drawn.add_row(
            finding.check,
            Text(finding.state, style=_STYLES[finding.state]),
            console.plain(finding.what),
            console.plain(finding.cure) if finding.cure else "-",
        )
    console.show(drawn)
    counts = {state: sum(finding.state == state for finding in findings) for state in ("broken", "warning")}
    console.note(f"{counts['broken']} broken, {counts['warning']} warning{'' if counts['warning'] == 1 else 's'}")
