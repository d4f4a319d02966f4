"""What somebody asked to be kept: blobs that eviction and removal leave alone, by the name under which they were pinned.

Each pin is an object of its own, on the disk before `add` returns, so it outlives restarts. A blob may have several pins. Read
once at the start; thread-safe; one process writes.

Native mounts pin what they show: the kernel opens it by name, so it must not go while they live, whoever is connected. Such
a pin has a name that says in which run of the machine it was made (`mount_pin`); those of earlier runs are forgotten.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fuse.cache.objects import ObjectStore

PINS: Final = "pins"
_MOUNT: Final = "mount:"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def mount_pin(mount_id: str) -> str:
    """The name of the pin of a native mount."""
    return f"{_MOUNT}{_boot_id()}:{mount_id}"


def _boot_id() -> str:
    """Of this run of the machine (random(4))."""
    return _BOOT_ID.read_text().strip()


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
                if pin.name.startswith(_MOUNT) and not pin.name.startswith(mount_pin("")):
                    objects.remove(PINS, key)  # no mount outlives the kernel
                else:
                    self._pins[pin.name] = pin
        self._blobs = self._union()

    @property
    def blobs(self) -> frozenset[str]:
        """Everything that is pinned."""
        return self._blobs

    def names(self, blob: str) -> tuple[str, ...]:
        """Under which names somebody has asked for a blob to be kept."""
        return tuple(name for name in self._of(blob) if not name.startswith(_MOUNT))

    def is_mounted(self, blob: str) -> bool:
        """Whether a native mount shows the blob."""
        return any(name.startswith(_MOUNT) for name in self._of(blob))

    def _of(self, blob: str) -> list[str]:
        if blob not in self._blobs:
            return []
        with self._lock:
            return sorted(pin.name for pin in self._pins.values() if blob in pin.blobs)

    def pinned_as(self, name: str) -> frozenset[str]:
        """What is pinned under a name."""
        with self._lock:
            pin = self._pins.get(name)
        return pin.blobs if pin is not None else frozenset()

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
