"""`profile …`: in which order a model is loaded."""

from __future__ import annotations

from weightless.cli.parameters import Json, Reference, group
from weightless.options import Settings, command

profile = group("Look at and publish the order in which a model is loaded.")


@profile.command(name="push")
@command
def profile_push(settings: Settings, reference: Reference) -> None:
    """Push the order in which a model was loaded here beside it, so that other nodes prefetch it in that order.

    Needs credentials that may push to the repository.
    """
    from weightless.commands.profiles import push

    push(settings, reference)


@profile.command(name="show")
@command
def profile_show(settings: Settings, reference: Reference, json: Json = False) -> None:
    """Show in which order a mount of a model would be prefetched: as it was loaded here, else as somebody pushed it."""
    from weightless.commands.profiles import show

    show(settings, reference, json=json)
