"""`weightless profile`: the order in which a model was loaded, shown, and pushed beside it (docs/profiles.md).

What has been learned is asked of the fetcher, who keeps it. Pushing is done here, as with `weightless index`.
"""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from fuse.artifact import profile
from fuse.artifact.digest import Digest
from fuse.artifact.profile import BLOCK_BYTES, Profile
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import PROFILE
from fuse.errors import NotFound
from fuse.filesystem.table import Table, decode
from fuse.filesystem.tree import Tree
from fuse.registry import publishing
from fuse.registry.origin import Origin
from fuse.registry.transport import Transport
from weightless import console, units, wiring
from weightless.options import Settings

_SHOWN_RUNS: Final = 20


def show(settings: Settings, reference: str, *, json: bool) -> None:
    """What a mount would be fetched by now. Raises NotFound when that is nothing."""
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    access = wiring.access_reader(settings).access(reference)
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client:
        resolved, content = client.resolve(
            reference, access, wiring.view((), exclude_weights=False), look_again=True
        )  # so that what somebody has just pushed is seen
        source, found = client.find_profile(resolved.reference)
    known = profile.decode(found)
    if json:
        answer: dict[str, Any] = {"reference": resolved.reference, "source": source} | msgspec.to_builtins(known)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n")
        return
    _show(resolved.reference, source, known, decode(content))


def push(settings: Settings, reference: str) -> None:
    """Returns when the registry has the profile that was learned here. Repeating it changes nothing."""
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    access = wiring.access_reader(settings).access(reference)
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client, Transport() as transport:
        resolved, _ = client.resolve(reference, access, wiring.view((), exclude_weights=False))
        source, content = client.find_profile(resolved.reference)
        if source != "learned":
            raise NotFound(
                "its profile was pushed by somebody, and no load of it through this cache is known",
                where=resolved.reference,
                fix="mount it, let something load it, and wait a few seconds, or unmount it",
            )
        learned = profile.decode(content)
        origin = Origin(Reference.parse(resolved.reference), access, transport, push=True)
        _, subject = publishing.subject_of(origin, Digest.parse(resolved.digest))
        digest, changed = publishing.push(origin, PROFILE, subject, content, created=learned.learned_at)
    done = "pushed" if changed else "was there already"
    console.say(f"profile {digest} of {resolved.reference} {done}: {_extent(learned)}")


def _show(reference: str, source: str, known: Profile, table: Table) -> None:
    learned_at = datetime.fromtimestamp(known.learned_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    whose = "learned here" if source == "learned" else "pushed to the registry"
    console.say(f"reference   {console.one_line(reference)}")
    console.say(f"profile     {whose}, {learned_at}")
    console.say(f"touched     {_extent(known)}, of {units.size(table.total_bytes)}")
    console.say("")
    drawn = console.table("file", "from", "size", right=("from", "size"))
    blobs = [(blob.digest, blob.size) for blob in table.blobs]
    names = _names(table)
    runs = profile.runs_of(known, blobs)
    for blob, first, blocks in runs[:_SHOWN_RUNS]:
        # Names that somebody else chose: never markup, never control characters.
        drawn.add_row(
            console.plain(names.get(blob, blobs[blob][0])),
            units.size(first * BLOCK_BYTES),
            units.size(_size(first, blocks, blobs[blob][1])),
        )
    console.show(drawn)
    if len(runs) > _SHOWN_RUNS:
        console.say(f"and {len(runs) - _SHOWN_RUNS} more (--json)")


def _extent(known: Profile) -> str:
    size = sum(_size(first, blocks, known.blobs[blob].size) for blob, first, blocks in known.runs)
    return f"{units.size(size)} in {len(known.runs)} run{'s' if len(known.runs) != 1 else ''}"


def _size(first: int, blocks: int, blob_bytes: int) -> int:
    """Of a run, in bytes: the last block of a blob is a short one."""
    return min((first + blocks) * BLOCK_BYTES, blob_bytes) - first * BLOCK_BYTES


def _names(table: Table) -> dict[int, str]:
    """What each blob holds: its file, or how many."""
    tree = Tree(table)
    files: dict[int, list[int]] = {}
    for ino in tree.files():
        files.setdefault(tree.extent(ino).blob, []).append(ino)
    return {
        blob: tree.path(inos[0]) if len(inos) == 1 else f"{table.blobs[blob].digest[:19]} ({len(inos)} files)"
        for blob, inos in files.items()
    }
