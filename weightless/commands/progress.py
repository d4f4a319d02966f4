"""How far a pull has come: a bar on a terminal; elsewhere a line every few seconds, so that logs stay readable."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

from fuse.fetch.protocol import MountProgress
from weightless import console, units

_LINE_S: Final = 5.0


class Meter(Protocol):
    def show(self, progress: MountProgress) -> None: ...

    def work(self, what: str, done_bytes: int, total_bytes: int) -> None:
        """How far something else has come, of the same bytes."""
        ...

    def say(self, text: str) -> None:
        """A remark that stays."""
        ...


@contextlib.contextmanager
def meter(total_bytes: int) -> Iterator[Meter]:
    """Draws on standard error."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[rest]}", style="dim"),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bar:
        yield _Bar(bar, bar.add_task("fetching", total=max(1, total_bytes), amount="", rest=""))


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def show(self, progress: MountProgress) -> None:
        self._bar.update(
            self._task,
            description=_activity(progress),
            completed=progress.bytes_cached if progress.bytes_total else 1,
            amount=f"{units.size(progress.bytes_cached)} of {units.size(progress.bytes_total)}",
            rest=_rest(progress),
        )

    def work(self, what: str, done_bytes: int, total_bytes: int) -> None:
        amount = f"{units.size(done_bytes)} of {units.size(total_bytes)}"
        self._bar.update(self._task, description=what, completed=done_bytes, amount=amount, rest="")

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_S

    def show(self, progress: MountProgress) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_S
        amount = f"{units.size(progress.bytes_cached)} of {units.size(progress.bytes_total)}"
        self.say(f"{_activity(progress)}: {amount}, {_rest(progress)}")

    def work(self, what: str, done_bytes: int, total_bytes: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_S
        self.say(f"{what}: {units.size(done_bytes)} of {units.size(total_bytes)}")

    def say(self, text: str) -> None:
        console.note(text)


def _activity(progress: MountProgress) -> str:
    if progress.stalled_by is not None:
        return "waiting"
    return "fetching" if progress.bytes_cached < progress.bytes_total else "verifying"


def _rest(progress: MountProgress) -> str:
    """Rate and time left; or why nothing comes."""
    if progress.stalled_by is not None:
        where = f"{progress.stalled_by.where}: " if progress.stalled_by.where else ""
        return console.one_line(f"{where}{progress.stalled_by.what}")
    if progress.bytes_cached >= progress.bytes_total:
        return "all there"
    rate = progress.rate_bytes_per_s
    if rate <= 0:
        return "starting"
    left = (progress.bytes_total - progress.bytes_cached) / rate
    return f"{units.rate(rate)}, {units.duration(left)} left"
