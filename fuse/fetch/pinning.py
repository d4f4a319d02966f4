"""From a tag to a digest, and whether a model is there: what a controller wants to know, which mounts nothing.

Asks from the calling thread and keeps nothing: no cache, no other process. So it is for processes without privileges only, as it
parses what registries send. An index is pinned as a whole: which of its manifests counts is for each node to say.
Thread-safe.
"""

from __future__ import annotations

from threading import Event

from fuse.artifact import formats
from fuse.artifact.manifest import Manifest, parse
from fuse.artifact.reference import Reference
from fuse.errors import InvalidArtifact, NotAModel
from fuse.registry.access import Access
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport


class Pinner:
    """Close it at the end."""

    def __init__(self) -> None:
        self._transport = Transport()

    def pin(self, reference: str, access: Access, cancel: Event) -> str:
        """The reference with the digest that it leads to now.

        Raises what the registry raises, InvalidArtifact, NotAModel for what no node could mount, Cancelled.
        """
        named = Reference.parse(reference)
        answer = Repository(named, access, self._transport).manifest(named.target, cancel=cancel)
        try:
            found = parse(answer.content, content_type=answer.media_type, digest=answer.digest)
            if isinstance(found, Manifest):
                _check_readable(found)
        except (InvalidArtifact, NotAModel) as error:
            raise error.again(where=f"{named}, {error.where}") from error
        return str(named.pinned(answer.digest))

    def close(self) -> None:
        self._transport.close()


def _check_readable(manifest: Manifest) -> None:
    formats.family(manifest)
    for layer in manifest.layers:
        if layer.media_type != formats.EMPTY:
            formats.packing(layer)
