"""From a reference to an inode table: tag, manifest (through an index), config, layers, tree.

What is known already is remembered in the object store: manifests by digest, offset maps of tars, finished tables. But what is
known never stands in for the right to know it: each resolution asks the registry, with this publish's own credentials, for the
manifest or at least for leave to pull it. When everything is known, that proof is the only request. Where the administrator
allows it (`Access.offline_s`), a registry that cannot be reached is replaced by its own earlier word to the same credentials.

Tables and offset maps rest on ranges of layers that no digest proves before the whole layer is there, so they are remembered by
repository too: one registry's answers never decide what the users of another one see.

Runs in the calling thread, with a few more for the layers that must be read; nothing is shared between calls but the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Event, Lock
from typing import Final

import msgspec

from fuse.artifact import formats
from fuse.artifact.build import RULES, build
from fuse.artifact.choice import MAX_DEPTH, choose, node_architecture
from fuse.artifact.digest import Digest
from fuse.artifact.entries import MAX_ENTRIES, Entry
from fuse.artifact.layers import entries
from fuse.artifact.manifest import MAX_ARTIFACT_BYTES, Descriptor, Index, Manifest, parse
from fuse.artifact.metadata import MAX_CONFIG_BYTES, created
from fuse.artifact.naming import clean_path
from fuse.artifact.offsets import RULES as OFFSET_RULES
from fuse.artifact.offsets import OffsetMaps, fingerprint
from fuse.artifact.reference import Reference
from fuse.artifact.seams import BlobReader, ManifestContent, ManifestSource, ObjectStore
from fuse.artifact.tar import MAX_PATHS_BYTES
from fuse.artifact.view import Filter
from fuse.errors import (
    Cancelled,
    Corrupt,
    Forbidden,
    InvalidArtifact,
    NotAModel,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from fuse.fetch.proofs import Leave
from fuse.filesystem.table import MAX_TABLE_BYTES, Artifact, Table, View, decode, encode

MANIFESTS: Final = "manifests"
TABLES: Final = "tables"
EVERYTHING: Final = View()
READERS: Final = 8
"""Layers whose headers are read at once: hides the registry's latency, and is what it likes in parallel requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What a reference stands for now."""

    table: Table
    encoded: bytes
    """`table`, as it is stored and handed to workers."""
    manifest_digest: Digest
    """Of the manifest that was chosen, not of an index that led to it."""
    media_type: str
    """Its artifactType, else its config's media type."""
    reference: Reference
    """The reference, pinned to `manifest_digest`."""
    proven_at: float | None = None
    """Unix time of the oldest remembered proof that was used, as the registry could not be asked."""

    @property
    def files(self) -> int:
        return sum(node.kind == "f" for node in self.table.nodes)


def resolve(
    reference: Reference,
    repository: ManifestSource,
    objects: ObjectStore,
    blobs: BlobReader,
    view: View = EVERYTHING,
    directory: str = "",
    *,
    cancel: Event | None = None,
    architecture: str | None = None,
    leave: Leave | None = None,
    on_manifest: Callable[[Manifest], None] = lambda _: None,
) -> Resolution:
    """The tree of the artifact behind `reference`, in `directory` of the mount.

    `leave`: what the same credentials were allowed before, for when the registry cannot be reached, and where it is noted.
    `on_manifest` is told of the manifest that was chosen as soon as it may be pulled, before its layers are looked into.

    Raises what the registry raises, NotAModel, InvalidArtifact, InvalidRequest for the view, and Cancelled once `cancel` is set
    (between reads: a read that is under way is the reader's to end).
    """
    Filter(view)  # A bad pattern is the caller's mistake: say so before anything is asked of a registry.
    if directory:
        directory = clean_path(directory, where="the directory of the artifact")
    run = _Resolving(reference, repository, objects, blobs, cancel, architecture or node_architecture(), leave)
    try:
        return run.resolve(view, directory, on_manifest)
    except (InvalidArtifact, NotAModel, Corrupt) as error:
        # The registry's errors say the reference themselves.
        named = not error.where or error.where.startswith(str(reference))
        where = (error.where or str(reference)) if named else f"{reference}, {error.where}"
        raise error.again(where=where) from error


_Word = tuple[Digest, ManifestContent | None]
"""What a target stands for, and the content if that was sent."""


class _Resolving:
    def __init__(
        self,
        reference: Reference,
        repository: ManifestSource,
        objects: ObjectStore,
        blobs: BlobReader,
        cancel: Event | None,
        architecture: str,
        leave: Leave | None,
    ) -> None:
        self._leave = leave
        self._proven_at: float | None = None
        self._reference = reference
        self._repository = repository
        self._objects = objects
        self._blobs = blobs
        self._cancel = cancel
        self._architecture = architecture
        self._unreachable: Unavailable | None = None
        """What it said when the registry could not be reached."""
        self._proven: set[Digest] = set()
        """Manifests that these credentials have pulled in this run."""

    def resolve(self, view: View, directory: str, on_manifest: Callable[[Manifest], None]) -> Resolution:
        manifest = self._manifest()
        family = formats.family(manifest)
        _check_sizes(manifest)
        on_manifest(manifest)
        key = self._table_key(manifest, view, directory)
        encoded = self._objects.get(TABLES, key)
        table = _decoded(encoded)
        if table is None or encoded is None:
            layers, mtime_ns = self._layers(manifest, family)
            artifact = Artifact(digest=str(manifest.digest), media_type=manifest.kind, directory=directory, view=view)
            table = build(artifact, manifest.layers, layers, mtime_ns=mtime_ns)
            encoded = encode(table)
            if len(encoded) > MAX_TABLE_BYTES:
                raise InvalidArtifact(f"its inode table takes {len(encoded)} bytes, more than {MAX_TABLE_BYTES}")
            self._objects.put(TABLES, key, encoded)
        return Resolution(
            table=table,
            encoded=encoded,
            manifest_digest=manifest.digest,
            media_type=manifest.kind,
            reference=self._reference.pinned(manifest.digest),
            proven_at=self._proven_at,
        )

    def _manifest(self) -> Manifest:
        """The manifest that the reference leads to, proven to be pullable."""
        if self._reference.digest is not None:
            found = self._by_digest(self._reference.digest)
        else:
            found = self._by_tag(self._reference.target)
        for _ in range(MAX_DEPTH):
            if isinstance(found, Manifest):
                return found
            self._check_cancelled()
            child = choose(found, self._architecture, lambda peeked: self._child(peeked, prove=False))
            found = self._child(child, prove=True)
        if isinstance(found, Manifest):
            return found
        raise InvalidArtifact(f"indexes within indexes, more than {MAX_DEPTH} deep", where=f"index {found.digest}")

    def _by_tag(self, tag: str) -> Manifest | Index:
        """What the registry says, else what it said to these credentials before."""
        digest, answer = self._asked(tag, lambda: _with_digest(self._repository.manifest(tag, cancel=self._cancel)))
        if answer is None:
            return self._by_digest(digest)
        self._note(str(digest), digest)
        return self._parsed(answer.content, digest, answer.media_type)

    def _asked(self, target: str, ask: Callable[[], _Word]) -> _Word:
        """The registry's word about `target`, which is noted; a remembered one, without content, if it cannot be reached."""
        if self._unreachable is None:
            try:
                digest, answer = ask()
            except (Unauthenticated, Forbidden, NotFound) as error:
                if self._leave is not None:
                    self._leave.forget(target, all_targets=not isinstance(error, NotFound))
                raise
            except Unavailable as error:
                if error.answered:
                    raise
                self._unreachable = error  # and is not asked again: each question takes its time
            else:
                self._note(target, digest)
                return digest, answer
        proof = self._leave.recall(target) if self._leave is not None else None
        if proof is None:
            raise self._unreachable
        self._proven_at = min(proof.proven_at, self._proven_at or proof.proven_at)
        return Digest.parse(proof.digest), None

    def _note(self, target: str, digest: Digest) -> None:
        if self._leave is not None:
            self._leave.remember(target, digest)

    def _child(self, descriptor: Descriptor, *, prove: bool) -> Manifest | Index:
        # The right to pull an index is none to pull what it names: anybody can push an index of digests.
        return self._by_digest(descriptor.digest, size=descriptor.size, prove=prove)

    def _by_digest(self, digest: Digest, *, size: int | None = None, prove: bool = True) -> Manifest | Index:
        known = self._objects.get(MANIFESTS, self._manifest_key(digest))
        media_type = ""
        if known is not None and digest.matches(known):
            if prove and digest not in self._proven:
                self._asked(str(digest), lambda: self._exists(digest))
            content = known
        else:
            if self._unreachable is not None:
                raise self._unreachable
            answer = self._repository.manifest(str(digest), expected=digest, cancel=self._cancel)
            self._note(str(digest), digest)
            self._proven.add(digest)
            content, media_type = answer.content, answer.media_type
        if size is not None and len(content) != size:
            raise InvalidArtifact(
                f"has {len(content)} bytes, but the index that names it says {size}", where=f"manifest {digest}"
            )
        return self._parsed(content, digest, media_type)

    def _exists(self, digest: Digest) -> tuple[Digest, None]:
        self._repository.exists(digest, cancel=self._cancel)
        return digest, None

    def _parsed(self, content: bytes, digest: Digest, media_type: str) -> Manifest | Index:
        if not digest.matches(content):
            raise Corrupt("the manifest does not match its digest", where=f"manifest {digest}")
        parsed = parse(content, content_type=media_type, digest=digest)
        key = self._manifest_key(digest)
        if self._objects.get(MANIFESTS, key) != content:
            self._objects.put(MANIFESTS, key, content)
        return parsed

    def _layers(self, manifest: Manifest, family: formats.Family) -> tuple[list[Entry], int]:
        """What all layers hold, in their order, and the default time."""
        maps = OffsetMaps(self._objects, self._blobs, self._reference.name)
        for layer in manifest.layers:
            if layer.media_type != formats.EMPTY:
                formats.packing(layer)  # Refuses what is compressed before anything is read.
        stop, room = _Either(self._cancel), _Room()
        pool = ThreadPoolExecutor(READERS, thread_name_prefix="resolve")
        try:
            config = pool.submit(self._config, manifest, family)
            found: list[Entry] = []
            numbered = iter(enumerate(manifest.layers))
            # In portions, so that an artifact with too much in it is refused before all of it is read.
            while portion := list(islice(numbered, 4 * READERS)):
                self._check_cancelled()
                for future in self._started(pool, portion, family, maps, stop, room):
                    found += future.result()
            return found, created(manifest, config.result())
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _started(
        self,
        pool: ThreadPoolExecutor,
        portion: Sequence[tuple[int, Descriptor]],
        family: formats.Family,
        maps: OffsetMaps,
        stop: Event,
        room: _Room,
    ) -> list[Future[list[Entry]]]:
        """What each layer of the portion will turn out to hold. Equal layers wait for each other: one thread reads a blob."""
        locks = {layer.digest: Lock() for _, layer in portion}

        def read(position: int, layer: Descriptor) -> list[Entry]:
            with locks[layer.digest]:
                found = entries(position, layer, family, maps, stop)
            room.take(found)
            return found

        return [pool.submit(read, position, layer) for position, layer in portion]

    def _config(self, manifest: Manifest, family: formats.Family) -> bytes | None:
        config = manifest.config
        if family != "modelpack" or not formats.is_model_type(config.media_type) or config.size == 0:
            return None
        if config.size > MAX_CONFIG_BYTES:
            raise InvalidArtifact(
                f"a config of {config.size} bytes, more than the {MAX_CONFIG_BYTES} that are read",
                where=f"config {config.digest}",
            )
        return self._repository.small_blob(config.digest, config.size, limit=MAX_CONFIG_BYTES, cancel=self._cancel)

    def _manifest_key(self, digest: Digest) -> str:
        # By repository: otherwise whoever runs a registry that grants leave for every digest could read a stranger's manifest.
        return f"{_object_key(digest)}-{fingerprint(self._reference.name)}"

    def _table_key(self, manifest: Manifest, view: View, directory: str) -> str:
        rest = msgspec.json.encode((view, directory, self._reference.name)).decode()
        return f"{_object_key(manifest.digest)}-{fingerprint(rest)}-{RULES}-{OFFSET_RULES}"

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("resolving was given up", where=str(self._reference))


class _Room:
    """For what all layers hold together. Each may hold as much as an artifact may: what goes beyond is not kept by anybody."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries = 0
        self._characters = 0

    def take(self, found: Sequence[Entry]) -> None:
        characters = sum(len(entry.path) + len(entry.target) for entry in found)
        with self._lock:
            self._entries += len(found)
            self._characters += characters
            if self._entries > MAX_ENTRIES:
                raise InvalidArtifact(f"more than {MAX_ENTRIES} files and directories", fix="pack fewer, larger files")
            if self._characters > MAX_PATHS_BYTES:
                raise InvalidArtifact(
                    f"the names of its files take more than {MAX_PATHS_BYTES} bytes", fix="pack fewer, larger files"
                )


class _Either(Event):
    """Set by itself, or by the signal that it was made of."""

    def __init__(self, other: Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or (self._other is not None and self._other.is_set())


def _check_sizes(manifest: Manifest) -> None:
    sizes: dict[Digest, int] = {}
    for layer in manifest.layers:
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise InvalidArtifact(
                f"two sizes are said of one layer, {sizes[layer.digest]} and {layer.size}",
                where=f"layer {layer.digest}",
            )
    if sum(sizes.values()) > MAX_ARTIFACT_BYTES:
        raise InvalidArtifact(f"its layers claim {sum(sizes.values())} bytes, more than {MAX_ARTIFACT_BYTES}")


def _decoded(encoded: bytes | None) -> Table | None:
    if encoded is None:
        return None
    try:
        return decode(encoded)
    except InvalidArtifact:
        return None  # Of another version of this program: computed anew.


def _with_digest(answer: ManifestContent) -> tuple[Digest, ManifestContent]:
    return answer.digest, answer


def _object_key(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}"
