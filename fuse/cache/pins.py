"""What somebody asked to be kept: blobs that eviction and removal leave alone, by the name under which they were pinned.

Each pin is an object of its own, on the disk before `add` returns, so it outlives restarts. A blob may have several pins. Read
once at the start; thread-safe; one process writes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import msgspec

from fuse.cache.objects import ObjectStore

PINS: Final = "pins"


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """As a person calls it: a reference, or a digest."""
    blobs: frozenset[str]
    """`str(BlobKey)` of each."""


class Pins:
    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self._pins: dict[str, Pin] = {}
        for key in objects.keys(PINS):
            with suppress(msgspec.DecodeError):
                pin = msgspec.json.decode(objects.get(PINS, key) or b"", type=Pin)
                self._pins[pin.name] = pin
        self._blobs = self._union()

    @property
    def blobs(self) -> frozenset[str]:
        """Everything that is pinned."""
        return self._blobs

    def names(self, blob: str) -> tuple[str, ...]:
        """Under which names a blob is pinned."""
        if blob not in self._blobs:
            return ()
        with self._lock:
            return tuple(sorted(pin.name for pin in self._pins.values() if blob in pin.blobs))

    def add(self, name: str, blobs: Iterable[str]) -> None:
        """Durable when it returns; replaces a pin of that name. Raises OSError."""
        pin = Pin(name=name, blobs=frozenset(blobs))
        with self._lock:
            self._objects.keep(PINS, _key(name), msgspec.json.encode(pin))
            self._pins[name] = pin
            self._blobs = self._union()

    def remove(self, name: str) -> bool:
        """False when there is none of that name. Raises OSError."""
        with self._lock:
            if name not in self._pins:
                return False
            self._objects.remove(PINS, _key(name))
            del self._pins[name]
            self._blobs = self._union()
            return True

    def _union(self) -> frozenset[str]:
        return frozenset().union(*(pin.blobs for pin in self._pins.values()))


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
