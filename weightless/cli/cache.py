"""`cache …`: what is on the disk."""

from __future__ import annotations

from typing import Annotated

import typer

from weightless.cli.parameters import Json, group
from weightless.options import FLAG, Settings, command

cache = group("Look at, empty and check the cache.")

Digests = Annotated[list[str] | None, typer.Argument(metavar="DIGEST", show_default=False)]
Pinned = Annotated[list[str], typer.Argument(metavar="REFERENCE|DIGEST", show_default=False)]


@cache.command(name="ls")
@command
def cache_ls(settings: Settings, json: Json = False) -> None:
    """List the blobs in the cache, most recently used first."""
    from weightless.commands.cache import list_blobs

    list_blobs(settings, json=json)


@cache.command(name="rm")
@command
def cache_rm(
    settings: Settings,
    digests: Digests = None,
    unused: Annotated[
        bool, typer.Option("--all", metavar=FLAG, help="Remove all that is neither mounted nor pinned.")
    ] = False,
) -> None:
    """Remove blobs from the cache, by digest or by its first characters."""
    from weightless.commands.cache import remove

    remove(settings, tuple(digests or ()), unused=unused)


@cache.command(name="pin")
@command
def cache_pin(settings: Settings, names: Pinned) -> None:
    """Keep a model, or single blobs, in the cache: neither eviction nor `rm` takes them."""
    from weightless.commands.cache import pin

    pin(settings, tuple(names))


@cache.command(name="unpin")
@command
def cache_unpin(settings: Settings, names: Pinned) -> None:
    """Take back `pin` or `pull --pin`, by the same name."""
    from weightless.commands.cache import unpin

    unpin(settings, tuple(names))


@cache.command(name="verify")
@command
def cache_verify(settings: Settings, digests: Digests = None) -> None:
    """Read blobs again and compare them with their checksums and digests; damaged blocks are forgotten and fetched anew."""
    from weightless.commands.cache import verify

    verify(settings, tuple(digests or ()))
