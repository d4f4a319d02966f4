"""What a benchmark found, and the table of all: figures with their spread, the targets that they have to reach, and whether
they do. Pure, and what is kept as JSON.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from weightless import console, units

Unit = Literal["ratio", "seconds", "bytes", "bytes/s", "share", "count"]


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure: the median of its samples, one a round. Without a target it is told for information only."""

    what: str
    """Two spaces before it put it under the figure above."""
    unit: Unit
    samples: tuple[float, ...]
    target: float | None = None
    bound: Literal["at least", "at most"] = "at most"
    chart: str = ""
    """The chart of the report (`bench/charts.py`) that shows it."""
    label: str = ""
    """Its name there."""
    peer: bool = False
    """What ours is compared with."""
    trace: tuple[tuple[float, float], ...] = ()
    """For a chart of lines: how much (MB) was there after how many seconds."""

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def reached(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target

    @property
    def measured(self) -> str:
        return shown(self.value, self.unit)

    @property
    def spread(self) -> str:
        """The lowest and the highest sample; nothing where there is only one."""
        if len(self.samples) < 2:
            return ""
        return f"{shown(min(self.samples), self.unit)} to {shown(max(self.samples), self.unit)}"

    @property
    def wanted(self) -> str:
        return "" if self.target is None else f"{self.bound} {shown(self.target, self.unit)}"

    @property
    def verdict(self) -> str:
        return "" if self.target is None else "reached" if self.reached else "MISSED"


def shown(value: float, unit: Unit) -> str:
    match unit:
        case "ratio":
            return f"{value:.3f}"
        case "seconds" if value < 0.01:
            return f"{value * 1000:.2f} ms"
        case "seconds" if value < 0.9995:
            return f"{value * 1000:.0f} ms"
        case "seconds" if 9.995 <= value < 99.95:
            return f"{value:.1f} s"
        case "seconds":
            return units.duration(value)
        case "bytes":
            return units.size(value)
        case "bytes/s":
            return units.rate(value)
        case "share":
            return f"{value:.2%}"
        case "count":
            return f"{value:g}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Of each round: what the machine does besides touches both of its halves."""
    return tuple(one / other for one, other in zip(ours, theirs, strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by `share` of them: one that was measured, not one between two."""
    # 0.99 of 400 is a little more than 396, as floats count.
    return sorted(values)[max(0, math.ceil(len(values) * share - 1e-9) - 1)]


def show(results: Sequence[Result]) -> None:
    drawn = console.table("what", "measured", "spread", "target", "", right=("measured",))
    for result in results:
        drawn.add_row(result.what, result.measured, result.spread, result.wanted, result.verdict)
    console.show(drawn)
