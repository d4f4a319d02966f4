"""`doctor`, `demo`, `version`: the program about itself, and about the machine that it runs on."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from weightless import __version__, console
from weightless.cli.parameters import Json
from weightless.options import Given, Settings, command

app = typer.Typer()


def _attempt(given: Given) -> object:
    from weightless.commands.doctor import attempt

    return attempt(given)


@app.command()
@partial(command, settling=_attempt)
def doctor(
    settings: Any,
    reference: Annotated[
        str | None,
        typer.Argument(
            help="A model whose registry and mirrors are to be asked.", metavar="REFERENCE", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say what is wrong on this machine, and the cure of each thing; exit code 1 when something is broken.

    Changes nothing. Registries are asked only when a REFERENCE is given.
    """
    from weightless.commands.doctor import run

    run(settings, reference, json=json)


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
