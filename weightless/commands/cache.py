"""`weightless cache`: looks at, empties and checks the cache of this user, through its fetcher."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from fuse.artifact.reference import Reference
from fuse.errors import Corrupt, InvalidRequest, NotFound
from fuse.fetch.protocol import CachedBlob
from fuse.filesystem.table import View
from fuse.mounting.fetcher import FetcherClient
from weightless import console, units, wiring
from weightless.options import Settings

_PREFIX: Final = re.compile(r"(?:(?:sha256|sha512):)?[0-9a-f]{4,128}")


def list_blobs(settings: Settings, *, json: bool) -> None:
    with _fetcher(settings) as client:
        blobs = sorted(client.cache_list(), key=lambda blob: -blob.used_at)
    if json:
        console.say(msgspec.json.format(msgspec.json.encode(blobs)).decode())
        return
    if not blobs:
        console.note(f"nothing is cached in {settings.cache_dir}")
        return
    drawn = console.table("digest", "size", "cached", "state", "used", right=("size", "cached"), whole=("digest",))
    for blob in blobs:
        drawn.add_row(
            blob.digest, units.size(blob.size), _share(blob.bytes_cached, blob.size), _state(blob), _ago(blob.used_at)
        )
    console.show(drawn)
    total = sum(blob.bytes_cached for blob in blobs)
    copied = sum(blob.bytes_cached for blob in blobs if blob.copy)
    of_it = f" ({units.size(copied)} of it copies, for native mounts)" if copied else ""
    console.note(f"{units.count(len(blobs), 'blob')}, {units.size(total)}{of_it} in {settings.cache_dir}")


def remove(settings: Settings, prefixes: Sequence[str], *, unused: bool) -> None:
    if bool(prefixes) == unused:
        raise InvalidRequest(
            "name digests, or say --all", where="cache rm", fix="weightless cache ls shows the digests"
        )
    with _fetcher(settings) as client:
        digests = _digests(client, prefixes)
        removed = client.cache_remove(digests)
        kept = client.cache_list() if unused else ()
    freed = sum(blob.bytes_cached for blob in removed)
    console.say(f"removed {units.count(len(removed), 'blob')}, {units.size(freed)}")
    if kept:
        console.note(f"kept {units.count(len(kept), 'blob')}: in use, or pinned (weightless cache ls)")


def pin(settings: Settings, names: Sequence[str]) -> None:
    """References are resolved, so the registry must know them; what is not in the cache yet is kept once it is."""
    with _fetcher(settings) as client:
        client.cache_list()  # starts the fetcher before anything is asked of a registry
        for name in names:
            if _PREFIX.fullmatch(name):
                client.cache_pin_digests(_digests(client, (name,)))
            else:
                reference = Reference.parse(name)
                access = wiring.access_reader(settings).access(name)
                _, content = client.resolve(name, access, View())
                client.cache_pin(str(reference), reference.host, content)
            console.say(f"pinned {name}")


def unpin(settings: Settings, names: Sequence[str]) -> None:
    with _fetcher(settings) as client:
        for name in names:
            found = _digests(client, (name,)) if _PREFIX.fullmatch(name) else (str(Reference.parse(name)),)
            client.cache_unpin(found)
            console.say(f"unpinned {name}")


def verify(settings: Settings, prefixes: Sequence[str]) -> None:
    """Raises Corrupt when something was damaged (and is forgotten now), so that scripts notice."""
    with _fetcher(settings) as client:
        blobs = client.cache_verify(_digests(client, prefixes))
    damaged = [blob for blob in blobs if blob.damaged_blocks]
    console.say(
        f"{units.count(len(blobs), 'blob')} read, {units.size(sum(blob.bytes_cached for blob in blobs))} in order"
    )
    for blob in damaged:
        console.say(f"{blob.digest}: {blob.damaged_blocks} damaged blocks were forgotten")
    if damaged:
        raise Corrupt(
            f"{len(damaged)} blobs were damaged",
            where=str(settings.cache_dir),
            fix="nothing is needed: what was damaged is fetched anew when it is read; look at the disk if it happens again",
        )


def _digests(client: FetcherClient, prefixes: Sequence[str]) -> tuple[str, ...]:
    """Whole digests for what may be their first characters. Raises InvalidRequest or NotFound."""
    if not prefixes:
        return ()
    known = [blob.digest for blob in client.cache_list()]
    found: list[str] = []
    for prefix in prefixes:
        if not _PREFIX.fullmatch(prefix):
            raise InvalidRequest(
                "is not a digest", where=f"{prefix[:80]!r}", fix="weightless cache ls shows the digests"
            )
        wanted = prefix if ":" in prefix else f"sha256:{prefix}"
        matching = sorted({digest for digest in known if digest.startswith(wanted)})
        if not matching:
            raise NotFound("no such blob in the cache", where=prefix, fix="weightless cache ls shows what is there")
        if len(matching) > 1:
            raise InvalidRequest(f"stands for {len(matching)} blobs", where=prefix, fix="write more of the digest")
        found += matching
    return tuple(found)


@contextlib.contextmanager
def _fetcher(settings: Settings) -> Iterator[FetcherClient]:
    run_dir = wiring.begin(settings)
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client:
        yield client


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "100%"


def _state(blob: CachedBlob) -> str:
    state = "verified" if blob.verified else "complete" if blob.complete else "partial"
    if blob.copy:
        state = f"copy of a part of {blob.copy_of[:19]}" if blob.copy_of else "copy"
    return ", ".join([state, *(["in use"] if blob.pinned else []), *(["pinned"] if blob.pinned_by else [])])


def _ago(then: float) -> str:
    passed = max(0.0, time.time() - then)
    for seconds, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if passed >= 2 * seconds:
            return f"{passed // seconds:.0f} {unit} ago"
    return "just now" if passed < 60 else "a minute ago"
