"""Small immutable things by name: manifests, inode tables, offset maps. Each is one file, whole or not there.

What is only remembered is bounded, in bytes and in number: the least recently used go first. Content is checked when it is
read: a file that a power loss cut short or emptied counts as absent and is written anew. Knows nothing of what the objects mean.
Safe for many threads; one process writes.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import xxhash

_MAGIC: Final = b"wlobj1\0\0"
MOST_BYTES: Final = 512 * 1024 * 1024
MOST_FILES: Final = 50_000
"""Bounds of what is remembered, all kinds together. Twice a table of the largest size fits."""
_BOUNDED: Final = ("manifests", "tables", "offsets", "chunks", "profiles", "pushed", "proofs", "copies")
"""Kinds that may be forgotten at any time."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
_log = structlog.get_logger(__name__)


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ObjectStore:
    """Objects in `<root>/<kind>/<key>`. A key is any text of harmless characters; `:` becomes `-`."""

    def __init__(self, root: Path, *, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES) -> None:
        self._root = root
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._bytes, self._files = self._prune(leftovers=True)

    def get(self, kind: str, key: str) -> bytes | None:
        """The content, or None when it was never put, or is damaged."""
        path = self._path(kind, key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body = content[16:]
        if content[:8] == _MAGIC and content[8:16] == xxhash.xxh3_64_digest(body):
            if kind in _BOUNDED:
                with suppress(OSError):
                    os.utime(path)
            return body
        _log.warning("object_damaged", kind=kind, key=key)
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, kind: str, key: str, content: bytes) -> None:
        """Keeps `content`. Never fails for want of space: what cannot be kept is computed again."""
        try:
            self._write(self._path(kind, key), content, durable=False)
        except OSError as error:
            _log.warning("object_not_kept", kind=kind, key=key, error=str(error))
            return
        with self._lock:
            self._bytes += len(content) + 16
            self._files += 1
            if self._bytes > self._most_bytes or self._files > self._most_files:
                self._bytes, self._files = self._prune(leftovers=False)

    def keep(self, kind: str, key: str, content: bytes) -> None:
        """As `put`, for what cannot be computed again: on the disk when it returns. Raises OSError."""
        self._write(self._path(kind, key), content, durable=True)

    def keys(self, kind: str) -> list[str]:
        """The keys of what was put, with `-` where they had a `:`."""
        try:
            return [entry.name for entry in os.scandir(self._root / kind) if _NAME.fullmatch(entry.name)]
        except OSError:
            return []

    def _write(self, path: Path, content: bytes, *, durable: bool) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(self._numbers)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(_MAGIC + xxhash.xxh3_64_digest(content) + content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
            if durable:
                sync_directory(path.parent)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _prune(self, *, leftovers: bool) -> tuple[int, int]:
        """Counts, and removes the least recently used beyond three quarters of a bound that is passed."""
        found: list[tuple[float, int, str]] = []
        for kind in _BOUNDED:
            with suppress(OSError):
                for entry in os.scandir(self._root / kind):
                    with suppress(OSError):
                        if entry.name.startswith("."):
                            if leftovers:  # of a process that was killed
                                Path(entry.path).unlink()
                            continue
                        status = entry.stat()
                        found.append((status.st_mtime, status.st_size, entry.path))
        size, count = sum(item[1] for item in found), len(found)
        if size <= self._most_bytes and count <= self._most_files:
            return size, count
        for _, length, path in sorted(found):
            if size <= self._most_bytes * 3 // 4 and count <= self._most_files * 3 // 4:
                break
            with suppress(OSError):
                Path(path).unlink()
                size, count = size - length, count - 1
        return size, count

    def remove(self, kind: str, key: str) -> None:
        with suppress(OSError):
            self._path(kind, key).unlink()

    def _path(self, kind: str, key: str) -> Path:
        name = key.replace(":", "-")
        if not _NAME.fullmatch(kind) or not _NAME.fullmatch(name):
            raise ValueError(f"{kind!r}/{key!r} cannot name an object")
        return self._root / kind / name
