"""How the demonstration is told: numbered steps with their times; colours on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weightless import console, units


class Step:
    """One step while it runs; `tell` adds what came of it."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.ended: float | None = None
        self.words = ""

    def tell(self, words: str) -> None:
        self.words = words

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.begun


class Story:
    """Prints steps as they happen."""

    def __init__(self) -> None:
        self._console: Any = console.out()
        self._count = 0

    @property
    def width(self) -> int:
        return min(int(self._console.width), 110) if self._console.is_terminal else 100

    def heading(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]\n")

    def line(self, text: str) -> None:
        """A line below a step."""
        self._console.print(f"      {text}")

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        self._count += 1
        step = Step()
        if self._console.is_terminal:
            with self._console.status(title):
                yield step
        else:
            yield step
        step.ended = time.monotonic()
        words = f"  {step.words}" if step.words else ""
        self._console.print(
            f"  [bold cyan]{self._count}[/bold cyan]  [bold]{title}[/bold]{words}  [dim]{units.duration(step.seconds)}[/dim]"
        )
