"""The profiles of artifacts: learned from loads here, else what the registry has (`fuse.fetch.referred`). Thread-safe.

A profile of our own counts more than one that somebody pushed, and nobody is asked where there is one. Of our own, the last load
counts, unless it touched less than the one that is kept: else whoever looks into a file would undo what a whole load has taught.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import structlog

from fuse.artifact import profile
from fuse.artifact.digest import Digest
from fuse.artifact.profile import MAX_PROFILE_BYTES, Profile, Runs
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import PROFILE
from fuse.cache.objects import ObjectStore
from fuse.errors import InvalidArtifact
from fuse.fetch.referred import Answer, Referrers, Remembered, key_of

LEARNED: Final = "profiles"
PUSHED: Final = "pushed"
"""Kinds of objects."""
Source = Literal["learned", "pushed"]

_log = structlog.get_logger(__name__)


class Profiles:
    def __init__(self, objects: ObjectStore, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time."""
        self._objects = objects
        self._pushed = Remembered(PUSHED, objects, clock=clock)
        self._clock = clock
        self._learning = threading.Lock()
        """Held while a profile is compared with the one that it may replace."""

    def known(self, reference: Reference, digest: Digest) -> tuple[Source, Profile] | None:
        """The profile of the manifest that counts in this repository, and whose it is; asks nobody."""
        learned = self._learned(key_of(reference, digest))
        if learned is not None:
            return "learned", learned
        answer = self._pushed.get(key_of(reference, digest))
        pushed = _decoded(answer.content if answer is not None else None)
        return None if pushed is None else ("pushed", pushed)

    def learn(self, reference: Reference, digest: Digest, blobs: Sequence[tuple[str, int]], runs: Runs) -> None:
        """A load of `blobs` (digest, size) has touched these runs. Raises InvalidArtifact for what no load can have touched."""
        key = key_of(reference, digest)
        new = profile.made(blobs, runs, int(self._clock()))
        with self._learning:
            old = self._learned(key)
            if old is not None and (old.blocks > new.blocks or (old.blobs, old.runs) == (new.blobs, new.runs)):
                return
            self._objects.put(LEARNED, key, profile.encode(new))
        _log.info("profile_learned", reference=str(reference), blocks=new.blocks, runs=len(new.runs))

    def is_due(self, reference: Reference, digest: Digest, *, again: bool = False) -> bool:
        """Whether the registry is to be asked. `again`: also if there was none a moment ago."""
        key = key_of(reference, digest)
        return self._learned(key) is None and self._pushed.is_due(key, again=again)

    def look_up(self, found: Referrers, reference: Reference, digest: Digest) -> bool:
        """Asks the registry, and remembers what it says; whether it has one. Blocks; never raises."""

        def first() -> Answer | None:
            return found.first(PROFILE, fits=lambda size: size <= MAX_PROFILE_BYTES, check=profile.decode)

        return self._pushed.ask(key_of(reference, digest), reference, first) is not None

    def _learned(self, key: str) -> Profile | None:
        return _decoded(self._objects.get(LEARNED, key))


class MountProfile:
    """The profile of one mount's artifact, in the mount's own numbers."""

    def __init__(
        self, profiles: Profiles, reference: Reference, digest: Digest, blobs: Sequence[tuple[str, int]]
    ) -> None:
        """`blobs`: digest and size of those of the mount's table, in its order."""
        self._profiles = profiles
        self._reference = reference
        self._digest = digest
        self._blobs = tuple(blobs)

    def is_of(self, reference: Reference, digest: Digest) -> bool:
        return key_of(self._reference, self._digest) == key_of(reference, digest)

    def order(self) -> Runs:
        """What is known; empty if nothing is."""
        known = self._profiles.known(self._reference, self._digest)
        return profile.runs_of(known[1], self._blobs) if known is not None else ()

    def learned(self, runs: Runs) -> None:
        """What the mount's worker says of a load. It is not trusted, but what it may do with this is change an order."""
        try:
            self._profiles.learn(self._reference, self._digest, self._blobs, runs)
        except InvalidArtifact as error:
            _log.warning("profile_refused", reference=str(self._reference), reason=error.what)


def _decoded(content: bytes | None) -> Profile | None:
    if content is None:
        return None
    try:
        return profile.decode(content)
    except InvalidArtifact:
        return None  # of a later version of this program
