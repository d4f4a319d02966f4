"""What a benchmark found, and the table of all: a figure, the target that it has to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from weightless import console


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure. Without a target it is told for information only."""

    what: str
    value: float
    shown: str
    target: float | None = None
    bound: Literal["at least", "at most"] = "at most"
    target_shown: str = ""

    @property
    def reached(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


def show(results: Sequence[Result]) -> None:
    drawn = console.table("what", "measured", "target", "", right=("measured",))
    for result in results:
        target = f"{result.bound} {result.target_shown or f'{result.target:g}'}" if result.target is not None else ""
        verdict = "" if result.target is None else "reached" if result.reached else "MISSED"
        drawn.add_row(result.what, result.shown, target, verdict)
    console.show(drawn)
