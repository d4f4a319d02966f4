"""Small immutable things by name: manifests, inode tables, offset maps. Each is one file, whole or not there.

Content is checked when it is read: a file that a power loss cut short or emptied counts as absent and is written anew.
Knows nothing of what the objects mean. Safe for many threads and, as files are renamed into place, many processes.
"""

from __future__ import annotations

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import xxhash

_MAGIC: Final = b"wlobj1\0\0"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
_log = structlog.get_logger(__name__)


class ObjectStore:
    """Objects in `<root>/<kind>/<key>`. A key is any text of harmless characters; `:` becomes `-`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count()

    def get(self, kind: str, key: str) -> bytes | None:
        """The content, or None when it was never put, or is damaged."""
        path = self._path(kind, key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body = content[16:]
        if content[:8] == _MAGIC and content[8:16] == xxhash.xxh3_64_digest(body):
            return body
        _log.warning("object_damaged", kind=kind, key=key)
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, kind: str, key: str, content: bytes) -> None:
        """Keeps `content`. Never fails for want of space: what cannot be kept is computed again."""
        path = self._path(kind, key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(self._numbers)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(_MAGIC + xxhash.xxh3_64_digest(content) + content)
            temporary.replace(path)
        except OSError as error:
            _log.warning("object_not_kept", kind=kind, key=key, error=str(error))
            with suppress(OSError):
                temporary.unlink()

    def remove(self, kind: str, key: str) -> None:
        with suppress(OSError):
            self._path(kind, key).unlink()

    def _path(self, kind: str, key: str) -> Path:
        name = key.replace(":", "-")
        if not _NAME.fullmatch(kind) or not _NAME.fullmatch(name):
            raise ValueError(f"{kind!r}/{key!r} cannot name an object")
        return self._root / kind / name
