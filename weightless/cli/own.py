"""`demo`, `version`: the program about itself."""

from __future__ import annotations

from typing import Annotated

import typer

from weightless import __version__, console
from weightless.options import Settings, command

app = typer.Typer()


@app.command()
@command
def demo(
    settings: Settings,
    rate: Annotated[float, typer.Option(help="How fast the demo's registry sends, in MB/s.", min=1)] = 20,
) -> None:
    """Watch a model become readable through CSI while its bytes still lie in a registry. Needs root; leaves nothing behind."""
    from weightless.demo.tour import run

    run(settings, rate_bytes_per_s=int(rate * 1e6))


@app.command()
@command
def version(settings: Settings) -> None:
    """Print the version."""
    del settings
    console.say(f"weightless {__version__}")
