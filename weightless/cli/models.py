"""`mount`, `unmount`, `inspect`, `pull`, `index`, `status`: what a person does with a model."""

from __future__ import annotations

from typing import Annotated

import typer

from weightless.cli.parameters import Directory, Exclude, ExcludeWeights, Json, Reference, directory_of
from weightless.options import FLAG, LabelOption, NativeOption, Settings, command, with_label, with_native

app = typer.Typer()


@app.command()
@command
def mount(
    settings: Settings,
    reference: Reference,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An existing directory.", show_default=False)],
    exclude: Exclude = None,
    exclude_weights: ExcludeWeights = False,
    native: NativeOption = None,
    selinux_context: LabelOption = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", metavar=FLAG, help="Stay, log here, unmount on Ctrl-C.")
    ] = False,
) -> None:
    """Mount a model on a directory.

    Returns as soon as the files are there to be read; their bytes are fetched when they are read, and in the background.
    Works as root, and as any user who may run fusermount3.
    """
    from weightless.commands.mount import run

    run(
        with_label(with_native(settings, native), selinux_context),
        reference,
        directory_of(directory),
        exclude=tuple(exclude or ()),
        exclude_weights=exclude_weights,
        foreground=foreground,
    )


@app.command()
@command
def unmount(
    settings: Settings,
    directory: Directory,
    lazy: Annotated[
        bool,
        typer.Option(
            "--lazy", metavar=FLAG, help="Detach now, even if files are open; what is open is readable no more."
        ),
    ] = False,
) -> None:
    """Unmount a model; returns when the processes behind it are gone. What was fetched stays in the cache."""
    from weightless.commands.unmount import run

    run(settings, directory_of(directory), lazy=lazy)


@app.command(name="inspect")
@command
def inspect_(
    settings: Settings,
    reference: Reference,
    exclude: Exclude = None,
    exclude_weights: ExcludeWeights = False,
    json: Json = False,
) -> None:
    """Show the files of a model: sizes, media types, digests, and how lazily each can be read. Fetches no file."""
    from weightless.commands.inspection import run

    run(settings, reference, exclude=tuple(exclude or ()), exclude_weights=exclude_weights, json=json)


@app.command()
@command
def pull(
    settings: Settings,
    reference: Reference,
    exclude: Exclude = None,
    exclude_weights: ExcludeWeights = False,
    pin: Annotated[bool, typer.Option("--pin", metavar=FLAG, help="Keep it in the cache until `cache unpin`.")] = False,
) -> None:
    """Fetch a whole model into the cache, and verify it. Ctrl-C keeps what is there already."""
    from weightless.commands.pull import run

    run(settings, reference, exclude=tuple(exclude or ()), exclude_weights=exclude_weights, pin=pin)


@app.command(name="index")
@command
def index_(
    settings: Settings,
    reference: Reference,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar=FLAG, help="Compute the index, and push nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Push the chunk index of a model beside it, so that every mount can verify what it reads while it is lazy.

    Fetches what is not in the cache. Needs credentials that may push to the repository.
    """
    from weightless.commands.indexing import run

    run(settings, reference, dry_run=dry_run, json=json)


@app.command()
@command
def status(settings: Settings, json: Json = False) -> None:
    """Show what is mounted: how much of it is in the cache, how fast it comes, what waits and why."""
    from weightless.commands.status import run

    run(settings, json=json)
