"""Asking a manifest's registry what is said about it: its chunk index first, then its profile, on a thread of their own.

It is asked while layers are being read. A publish waits a little for the chunk index, without which it would begin to serve what
is not proven; an answer that comes later is for the next mount. Nobody waits for a profile: mounts that are there are told of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from fuse import threads
from fuse.artifact import chunks
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Manifest
from fuse.artifact.reference import Reference
from fuse.cache.objects import ObjectStore
from fuse.fetch.chunkindex import ChunkIndexes
from fuse.fetch.profiles import Profiles
from fuse.fetch.referred import Referrers
from fuse.registry.origin import Origin

WAIT_S: Final = 2.0
"""How long a publish that is otherwise done waits for the chunk index."""


class Lookup:
    """One manifest's. `wait` for what is needed of it."""

    def __init__(self, chunk_index: Callable[[], None] | None, profile: Callable[[], None] | None) -> None:
        self._steps = (chunk_index, profile)
        self._indexed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="referrers", daemon=True)

    def start(self) -> bool:
        return threads.begin(self._thread)

    def wait(self, limit_s: float = WAIT_S, *, everything: bool = False) -> None:
        """Until the chunk index is known, or `everything`; or until it has taken too long."""
        if everything:
            self._thread.join(limit_s)
        else:
            self._indexed.wait(limit_s)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        chunk_index, profile = self._steps
        try:
            if chunk_index is not None:
                chunk_index()
        finally:
            self._indexed.set()
        if profile is not None:
            profile()


class Lookups:
    """Thread-safe."""

    def __init__(self, objects: ObjectStore, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time."""
        self.chunk_indexes: Final = ChunkIndexes(objects, clock=clock)
        self.profiles: Final = Profiles(objects, clock=clock)

    def begin(
        self,
        origin: Callable[[], Origin],
        reference: Reference,
        manifest: Manifest,
        *,
        again: bool = False,
        on_profile: Callable[[Reference, Digest], None] = lambda *_: None,
    ) -> Lookup | None:
        """Asks for what is not known of `manifest`; None when nothing needs to be asked.

        `again`: also for what was not there a moment ago. `on_profile` is told, on the thread, that there is one now.
        """
        if not chunks.indexed(manifest.layers):
            return None  # small layers are verified whole, and come in any order at once
        digest = manifest.digest
        found = Referrers(origin, digest)

        def chunk_index() -> None:
            self.chunk_indexes.look_up(found, reference, manifest)

        def profile() -> None:
            if self.profiles.look_up(found, reference, digest):
                on_profile(reference, digest)

        indexes_due = self.chunk_indexes.is_due(reference, digest, again=again)
        profiles_due = self.profiles.is_due(reference, digest, again=again)
        if not (indexes_due or profiles_due):
            return None
        lookup = Lookup(chunk_index if indexes_due else None, profile if profiles_due else None)
        return lookup if lookup.start() else None
