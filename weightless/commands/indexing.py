"""`weightless index`: the chunk index of a model, computed from verified bytes and pushed beside it (docs/chunk-index.md).

The bytes come through the cache; what is complete there costs no network. Each layer is compared with its digest once more in the
pass that computes the chunks' digests. Pushing is done here, in the user's own process, and not by the fetcher, which only pulls.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping

import msgspec

from fuse.artifact import chunks
from fuse.artifact.chunks import CHUNK_BYTES, BlobHasher, ChunkDigests
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Manifest
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import CHUNK_INDEX, manifest_of
from fuse.errors import Corrupt, InvalidArtifact
from fuse.filesystem.table import Artifact, Blob, Node, Table, encode
from fuse.registry import publishing
from fuse.registry.origin import Origin
from fuse.registry.transport import Transport
from weightless import console, units, wiring
from weightless.commands.fetching import Session, with_everything
from weightless.commands.progress import Meter, meter
from weightless.options import Settings


def run(settings: Settings, reference: str, *, dry_run: bool, json: bool) -> None:
    """Returns when the registry has the index, or, with `dry_run`, when it is computed. Repeating it changes nothing."""
    wiring.check_reference(reference)
    run_dir = wiring.begin(settings)
    access = wiring.access_reader(settings).access(reference)
    with contextlib.closing(wiring.fetcher(settings, run_dir)) as client, Transport() as transport:
        resolved, _ = client.resolve(reference, access, wiring.view((), exclude_weights=False))
        pinned = Reference.parse(resolved.reference)
        # Before anything is fetched: whoever may not push by configuration should not wait for a terabyte to learn it.
        origin = Origin(pinned, access, transport, push=not dry_run)
        manifest, subject = publishing.subject_of(origin, Digest.parse(resolved.digest))
        wanted = chunks.indexed(manifest.layers)
        if not wanted:
            _tell(json, resolved.reference, "", 0, wanted, "needs no index: each layer is verified before it is read")
            return
        if chunks.encoded_bytes(wanted) > chunks.MAX_INDEX_BYTES:
            raise InvalidArtifact(
                f"too large for a chunk index, which may have {units.size(chunks.MAX_INDEX_BYTES)}",
                where=resolved.reference,
            )
        total = sum(wanted.values())
        with meter(total) as drawn:
            found = with_everything(
                client,
                resolved.reference,
                encode(_table(manifest, wanted)),
                access,
                settings.cache_dir,
                drawn,
                lambda session, _: _digests(session, wanted, drawn),
            )
        content = chunks.encode(found)
        if dry_run:
            digest, done = Digest.of(manifest_of(CHUNK_INDEX, subject, content)), "would be pushed"
        else:
            digest, changed = publishing.push(origin, CHUNK_INDEX, subject, content)
            done = "pushed" if changed else "was there already"
            # The fetcher may believe for a while that there is none.
            client.resolve(resolved.reference, access, wiring.view((), exclude_weights=False), look_again=True)
    _tell(json, resolved.reference, str(digest), len(content), wanted, done)


def _table(manifest: Manifest, wanted: Mapping[Digest, int]) -> Table:
    """Every indexed layer as a file of its own: the fetcher is asked for tables, and knows nothing of layers."""
    return Table(
        artifacts=(Artifact(digest=str(manifest.digest), media_type=manifest.kind),),
        blobs=tuple(Blob(str(digest), size, "") for digest, size in wanted.items()),
        nodes=(
            Node(1, "", "d", 0o555, 0),
            *(Node(1, digest.hex, "f", 0o444, 0, size, number) for number, (digest, size) in enumerate(wanted.items())),
        ),
    )


def _digests(session: Session, wanted: Mapping[Digest, int], drawn: Meter) -> dict[Digest, ChunkDigests]:
    done, total = 0, sum(wanted.values())
    found: dict[Digest, ChunkDigests] = {}
    for number, (digest, size) in enumerate(wanted.items()):
        with contextlib.closing(session.open(number)) as blob:
            hasher = BlobHasher(digest, size)
            for at in range(0, size, CHUNK_BYTES):
                chunk = blob.read(at, CHUNK_BYTES)
                hasher.add(chunk)
                done += len(chunk)
                drawn.work("hashing", done, total)
            digests = hasher.finish()
        if digests is None:
            raise Corrupt(
                "the cached bytes do not match the digest", where=str(digest), fix="run `weightless cache verify`"
            )
        found[digest] = digests
    return found


def _tell(json: bool, reference: str, digest: str, size: int, wanted: Mapping[Digest, int], done: str) -> None:
    if json:
        answer = {
            "reference": reference,
            "index": digest or None,
            "bytes": size,
            "layers": len(wanted),
            "chunks": sum(map(chunks.chunk_count, wanted.values())),
            "result": done,
        }
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n")
        return
    if not digest:
        console.say(f"{reference} {done}")
        return
    console.say(f"chunk index {digest} of {reference} {done}: {len(wanted)} layers, {units.size(size)}")
