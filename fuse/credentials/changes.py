"""Whether files have changed, by what stat says: kubelet swaps a mounted secret by a symbolic link, people write in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from fuse.errors import WeightlessError

T = TypeVar("T")
_log = structlog.get_logger()


def marker(path: Path) -> Hashable:
    """Differs when the file, or a file of the directory, is another one, or was written."""
    try:
        paths = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple(_of_file(each) for each in paths)
    except OSError as error:
        return error.errno


def _of_file(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError as error:
        return str(path), error.errno
    return str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Reread(Generic[T]):
    """What `load` makes of a file, read again when the file has changed. What cannot be used changes nothing. Thread-safe."""

    def __init__(self, path: Path, load: Callable[[Path], T]) -> None:
        self.path = path
        self._load = load
        self._lock = threading.Lock()
        self._known: tuple[Hashable, T] | None = None

    def value(self) -> T:
        """Raises the WeightlessError of `load` as long as nothing was usable."""
        with self._lock:
            now = marker(self.path)
            if self._known is None:
                self._known = (now, self._load(self.path))
            elif self._known[0] != now:
                try:
                    self._known = (now, self._load(self.path))
                except WeightlessError as error:
                    _log.error("change_not_taken", path=str(self.path), error=error)
                    self._known = (now, self._known[1])
            return self._known[1]
