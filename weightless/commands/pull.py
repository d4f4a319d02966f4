"""`weightless pull`: the whole of a model into the cache, and every digest verified."""

from __future__ import annotations

import contextlib
import time

from fuse.artifact.reference import Reference
from weightless import console, units, wiring
from weightless.commands.fetching import with_everything
from weightless.commands.progress import meter
from weightless.options import Settings


def run(
    settings: Settings, reference: str, *, exclude: tuple[str, ...], exclude_weights: bool, pin: bool = False
) -> None:
    """With `pin` it is kept from eviction, from before its first byte comes.

    Returns when all is cached and verified. KeyboardInterrupt leaves in the cache what is there."""
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    access = wiring.access_reader(settings).access(reference)
    begun = time.monotonic()
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client:
        resolved, content = client.resolve(reference, access, wiring.view(exclude, exclude_weights=exclude_weights))
        console.note(f"{resolved.reference}: {resolved.files} files, {units.size(resolved.bytes_total)}")
        if pin:
            named = Reference.parse(reference)
            client.cache_pin(str(named), named.host, content)
        with meter(resolved.bytes_total) as drawn:
            fetched = with_everything(
                client,
                resolved.reference,
                content,
                access,
                settings.cache_dir,
                drawn,
                lambda _, fetched: fetched,
                copy_out=wiring.copies_out(settings),
            )
    seconds = time.monotonic() - begun
    came = f"{units.size(fetched)} fetched in {units.duration(seconds)}" if fetched else "all was there already"
    if pin:
        came += ", pinned"
    console.say(f"pulled and verified {resolved.reference}: {came}")
