"""What of the cache the kernel can show alone: trees of which every blob is there, complete and verified, and every part that has
to be a file of its own is one (`fuse.filesystem.native`). Looks at the disk; blocking, safe for many threads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.cache.copies import Copies
from fuse.cache.keys import BlobKey, scope_of
from fuse.cache.pins import mount_pin
from fuse.errors import CacheFailed, NotFound
from fuse.fetch import protocol
from fuse.fetch.shelf import Shelf
from fuse.filesystem import native
from fuse.filesystem.native import Section
from fuse.filesystem.table import Table


class Wholes:
    def __init__(self, shelf: Shelf) -> None:
        self._store = shelf.store
        self._space = shelf.space
        self._pins = shelf.pins
        self._copies = Copies(shelf.store.objects)

    def has(self, keys: Collection[BlobKey]) -> bool:
        """Whether the cache has each, complete and verified."""
        found = (self._store.stored(key) for key in set(keys))
        return all(stored is not None and stored.complete and stored.verified for stored in found)

    def copies(self, sections: Sequence[Section], keys: Sequence[BlobKey]) -> dict[Section, BlobKey]:
        """Of these parts of the blobs `keys`, the copies that the cache has."""
        known = {number: self._copies.of(keys[number]) for number in {section.blob for section in sections}}
        named = {section: known[section.blob].get((section.offset, section.size)) for section in sections}
        return {section: copy for section, copy in named.items() if copy is not None and self.has((copy,))}

    def shown_by(self, table: Table, keys: Sequence[BlobKey], *, copies: bool) -> Mapping[Section, BlobKey] | None:
        """The copies by which the kernel can show the tree; None when it cannot, or not yet.

        Without `copies` only a tree that needs none: whoever asks would not know what to do with them.
        """
        sections = native.sections(table)
        if sections is None or (sections and not copies) or not self.has(keys):
            return None
        found = self.copies(sections, keys)
        return found if len(found) == len(sections) else None

    def pin(
        self, mount_id: str, table: Table, keys: Sequence[BlobKey], *, copies: bool, request_id: int
    ) -> protocol.Whole:
        """Keeps everything that a native mount shows, and its blobs, from eviction and removal. Raises NotFound, CacheFailed."""
        name = mount_pin(mount_id)
        with self._space.lock:  # under which they are removed and evicted
            shown = self.shown_by(table, keys, copies=copies)
            if shown is None:
                raise NotFound("not all of it is in the cache, complete and verified", where=mount_id)
            whole = self._named(name, keys, shown, request_id)
            try:
                self._pins.add(name, map(str, (*keys, *shown.values())))
            except OSError as error:
                raise CacheFailed(f"the pin cannot be written: {error.strerror}", where=name) from error
        return whole

    def _named(
        self, pin: str, keys: Sequence[BlobKey], copies: Mapping[Section, BlobKey], request_id: int
    ) -> protocol.Whole:
        whole = protocol.Whole(
            id=request_id,
            pin=pin,
            names=tuple(self._store.place(key) for key in keys),
            copies=tuple(
                protocol.Copy(blob=at.blob, offset=at.offset, size=at.size, name=self._store.place(key))
                for at, key in copies.items()
            ),
        )
        if len(msgspec.json.encode(whole)) > wire.MAX_MESSAGE_BYTES:  # long digests, mostly
            raise NotFound("its blobs have too many names for one message", where=pin)
        return whole


def keys_of(table: Table, registry: str) -> list[BlobKey]:
    """The blobs of a table, as they are called in the cache when they are that registry's."""
    scope = scope_of(registry)
    return [BlobKey(Digest.parse(blob.digest), blob.size, scope) for blob in table.blobs]
