"""What a person sees: errors as one line and the way out of them, tables, and plain text where there is no terminal.

rich is imported only where a table or a bar is drawn: an error or a JSON answer should not wait for it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fuse.errors import WeightlessError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def out() -> Console:
    from rich.console import Console

    # Cut off, a digest or a path in a file or a pipe is worthless; a terminal wraps or folds it.
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def say(text: str) -> None:
    """A line of result on standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """A line for the person that is no result: standard error, so that pipes stay clean."""
    sys.stderr.write(f"{text}\n")


def error(problem: WeightlessError) -> None:
    """`error: where: what`, and the fix on a second line."""
    where = f"{one_line(problem.where)}: " if problem.where else ""
    note(f"error: {where}{one_line(problem.what)}")
    note(f"  fix: {one_line(problem.fix)}")


def one_line(text: str) -> str:
    """Text that a registry or a file may have written, safe for a terminal: no control characters, no secrets of URLs."""
    from fuse.logs import scrub

    return scrub("".join(letter if letter.isprintable() else " " for letter in text)).strip()


def plain(text: str) -> Text:
    """`one_line` for a cell of a table, in which brackets are no markup."""
    from rich.text import Text

    return Text(one_line(text))


def table(*columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """Columns with plain headings; those in `right` hold numbers, those in `whole` are never folded on a narrow terminal."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right + whole
        )
    return drawn


def show(drawn: Table) -> None:
    from rich.console import Console

    console = out()
    if not sys.stdout.isatty():
        # Without a terminal there is no width: as wide as the widest row, so that every row is one line.
        console = Console(highlight=False, width=100_000)
        console = Console(highlight=False, width=console.measure(drawn).maximum)
    console.print(drawn)
