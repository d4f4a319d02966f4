"""The page that shows what was measured: docs/benchmarks.md, its charts, and the samples that both are made of.

What was measured before on a machine like this stays until it is measured again, so that one family can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench import charts
from bench.machine import Machine
from bench.results import Result

_INTRODUCTION: Final = """\
# Benchmarks

`make bench` measures all of this on loopback, in one run, and writes this page. It is about ratios: against a peer or a physical
limit that was measured in the same run, in turns with ours. A figure is the median of several rounds, its spread the lowest and
the highest of them; of a ratio, each round has its own. *Cold* is an empty cache. All servers, readers and our own processes
share the cores of one machine.
"""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    machine: Machine
    families: dict[str, tuple[Result, ...]] = {}

    def having(self, family: str, results: Sequence[Result]) -> Findings:
        return Findings(machine=self.machine, families={**self.families, family: tuple(results)})


def load(directory: Path, machine: Machine) -> Findings:
    """What was found on a machine like this one before."""
    try:
        found = msgspec.json.decode((directory / "benchmarks" / "results.json").read_bytes(), type=Findings)
    except (OSError, msgspec.DecodeError):
        return Findings(machine=machine)
    return found if found.machine == machine else Findings(machine=machine)


def write(directory: Path, findings: Findings, descriptions: Mapping[str, str]) -> None:
    """`descriptions` says of each family, in the order of the page, what is measured and how."""
    place = directory / "benchmarks"
    place.mkdir(exist_ok=True)
    (place / "results.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(findings, order="sorted"), indent=1) + b"\n"
    )
    for chart in charts.CHARTS:
        if shown := charts.of(chart, findings.families.get(chart.family, ())):
            charts.draw(chart, shown, place / f"{chart.name}.png")
    (directory / "benchmarks.md").write_text(page(findings, descriptions))


def page(findings: Findings, descriptions: Mapping[str, str]) -> str:
    families = {name: findings.families[name] for name in descriptions if name in findings.families}
    parts = [_INTRODUCTION, f"This machine: {findings.machine}.\n", _summary(families)]
    for name, results in families.items():
        parts += [f"## {_title(name)}\n", _paragraphs(descriptions[name]), _table(results)]
        parts += [
            f"![{chart.title}](benchmarks/{chart.name}.png)\n"
            for chart in charts.CHARTS
            if chart.family == name and charts.of(chart, results)
        ]
    return "\n".join(parts)


def _summary(families: Mapping[str, Sequence[Result]]) -> str:
    asked = [(name, result) for name, results in families.items() for result in results if result.target is not None]
    missed = [(name, result) for name, result in asked if not result.reached]
    reached = f"**{len(asked) - len(missed)} of {len(asked)} targets are reached.**"
    if not missed:
        return f"{reached}\n"
    lines = [
        f"- [{_title(name)}](#{_title(name).lower().replace(' ', '-')}): {_cell(result.what.strip())}: "
        f"{result.measured}, {result.wanted} is wanted"
        for name, result in missed
    ]
    return "\n".join([f"{reached} Missed:\n", *lines, ""])


def _title(family: str) -> str:
    return family.replace("_", " ").capitalize()


def _paragraphs(text: str) -> str:
    """A docstring without its line breaks."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")) + "\n"


def _table(results: Sequence[Result]) -> str:
    lines = ["| | measured | spread | target | |", "| --- | ---: | --- | --- | --- |"]
    for result in results:
        name = f"· {result.what.strip()}" if result.what.startswith(" ") else result.what
        verdict = "**missed**" if result.verdict == "MISSED" else result.verdict
        lines.append(f"| {_cell(name)} | {result.measured} | {result.spread} | {result.wanted} | {verdict} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
