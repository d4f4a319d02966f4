"""What is said about manifests at their own registry: looked for with few requests, and the answer remembered.

A publish does not depend on it: what goes wrong is logged, and counts as nothing found. That there is nothing is believed for a
while only. Remembered by repository, as tables are. Thread-safe but for `Referrers`, which is one thread's.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from fuse.artifact import referrers
from fuse.artifact.digest import Digest
from fuse.artifact.manifest import Descriptor
from fuse.artifact.offsets import fingerprint
from fuse.artifact.reference import Reference
from fuse.artifact.referrers import Kind
from fuse.cache.objects import ObjectStore
from fuse.errors import Corrupt, InvalidArtifact, NotAModel, WeightlessError
from fuse.registry.origin import Origin

NONE_HOLDS_S: Final = 600
"""How long it is believed that there is nothing: what is pushed later is found then."""
TROUBLE_HOLDS_S: Final = 60
"""The same after a registry that did not answer as it should."""

_HEADER: Final = struct.Struct("<BQ")
_NONE, _AUTHENTIC, _FOUND = range(3)
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A document that was found."""

    content: bytes
    authentic: bool
    """It came over a connection that proves whose word it is."""


class Referrers:
    """Those of one manifest. The list of them is asked for when it is needed, and again only where the registry has left out what
    was not asked for."""

    def __init__(self, make: Callable[[], Origin], subject: Digest) -> None:
        self._make = make
        self._subject = subject
        self._origin: Origin | None = None
        self._all: tuple[bytes, str] | None = None
        """The list, with its media type, once it is known to have every kind in it."""

    def first(self, kind: Kind, *, fits: Callable[[int], bool], check: Callable[[bytes], object]) -> Answer | None:
        """The first document of `kind` whose size fits, and with which `check` finds no fault (InvalidArtifact).

        Raises what the registry raises, InvalidConfig where it may not be asked, InvalidArtifact for what is no list.
        """
        if self._origin is None:
            self._origin = self._make()
        origin = self._origin
        for candidate in self._candidates(origin, kind)[: referrers.MOST_CANDIDATES]:
            try:
                found = origin.manifest(str(candidate.digest))
                if found is None:
                    continue
                blob = referrers.document_blob(
                    kind, found.content, found.media_type, found.digest, self._subject, fits=fits
                )
                content = origin.blob(blob.digest, blob.size)
                check(content)
            except (Corrupt, InvalidArtifact, NotAModel) as error:
                _log.warning(
                    "referrer_refused",
                    kind=kind.name,
                    manifest=str(self._subject),
                    referrer=str(candidate.digest),
                    reason=error.what,
                )
            else:
                return Answer(content=content, authentic=origin.authentic)
        return None

    def _candidates(self, origin: Origin, kind: Kind) -> list[Descriptor]:
        if self._all is None:
            answer = origin.referrers(self._subject, kind.artifact_type)
            if answer is not None and answer.filtered:
                return referrers.candidates(kind, answer.content, answer.media_type)
            listing = answer or origin.manifest(referrers.tag_of(self._subject))
            self._all = (listing.content, listing.media_type) if listing is not None else (b"", "")
        content, media_type = self._all
        return referrers.candidates(kind, content, media_type) if content else []


class Remembered:
    """The answers of registries about one kind of document, kept as objects."""

    def __init__(self, kind: str, objects: ObjectStore, *, clock: Callable[[], float] = time.time) -> None:
        """`kind`: of objects. `clock`: Unix time."""
        self._kind = kind
        self._objects = objects
        self._clock = clock

    def get(self, key: str) -> Answer | None:
        """What was found; asks nobody."""
        content = self._objects.get(self._kind, key)
        if content is None or len(content) < _HEADER.size or content[0] == _NONE:
            return None
        return Answer(content=content[_HEADER.size :], authentic=content[0] == _AUTHENTIC)

    def is_due(self, key: str, *, again: bool = False) -> bool:
        """Whether the registry is to be asked. `again`: also if there was nothing a moment ago."""
        content = self._objects.get(self._kind, key)
        if content is None or len(content) < _HEADER.size:
            return True
        state, until = _HEADER.unpack_from(content)
        # A clock that was set back must not make the answer last for ever.
        return state == _NONE and (again or not 0 <= until - self._clock() <= NONE_HOLDS_S)

    def ask(self, key: str, reference: Reference, look_up: Callable[[], Answer | None]) -> Answer | None:
        """What `look_up` finds, remembered. Never raises."""
        answer, holds_s = None, NONE_HOLDS_S
        try:
            answer = look_up()
        except WeightlessError as error:
            holds_s = TROUBLE_HOLDS_S
            _log.warning("referrer_not_asked", kind=self._kind, reference=str(reference), error=str(error))
        except Exception:  # noqa: BLE001  (a thread's edge)
            holds_s = TROUBLE_HOLDS_S
            _log.exception("referrer_lookup_broken", kind=self._kind, reference=str(reference))
        state, content = _NONE, b""
        if answer is not None:
            state, content = _AUTHENTIC if answer.authentic else _FOUND, answer.content
            _log.info(
                "referrer_found",
                kind=self._kind,
                reference=str(reference),
                authentic=answer.authentic,
                size=len(content),
            )
        self._objects.put(self._kind, key, _HEADER.pack(state, int(self._clock()) + holds_s) + content)
        return answer


def key_of(reference: Reference, digest: Digest) -> str:
    """Of the manifest, as this repository has it."""
    return f"{digest.algorithm}-{digest.hex}-{fingerprint(reference.name)}"
