"""Records of published volumes on disk: what a restarted plugin knows of the one before it.

One JSON file a volume and target below `<state-dir>/volumes`, named by a hash. A record is written before anything is done that
it would have to undo, and removed last. It holds no secret. Writes are atomic and durable (file and directory are synced), so
a reader sees a whole record or none. One process writes (the socket's lock sees to that); its threads share a `VolumeRecords`,
whose copy in memory answers every read.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from fuse.disk import unusable
from fuse.errors import MountFailed, NoSpace
from fuse.filesystem.table import View
from fuse.spec import Prefetch, Verify

VERSION: Final = 3
NEEDS: Final = 1
"""The oldest version of this module that understands what this one writes (docs/ARCHITECTURE.md, Versions)."""

Stage = Literal["publishing", "published", "unpublishing"]


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One volume at one target."""

    name: str
    """Of the file: `VolumeKey.name`."""
    volume_id: str
    target: str
    stage: Stage
    reference: str
    """As it was asked for."""
    pinned: str
    """The same, with the digest that it led to: a mount is made again from this, whatever its tag says by then."""
    view: View
    prefetch: Prefetch
    parameters: str
    """`PublishRequest.parameters`."""
    identity: str
    """Of the shared mount."""
    bytes_total: int
    files: int
    pod: str = ""
    verify: Verify = "lazy"
    rung: str = ""
    """Whose credentials let it in (`fuse.credentials.given`); empty where that is not known. Since version 2."""
    native: bool = False
    """Of the shared mount: it was made to be shown by the kernel alone (`ResolvedArtifact.native`)."""
    label: str = ""
    """Of the shared mount: its SELinux context (`ResolvedArtifact.label`), asked for or the node's. Since version 3."""
    version: int = VERSION
    needs: int = NEEDS

    @property
    def grant(self) -> str:
        """The name under which this volume holds the shared mount."""
        return grant_of(self.name, self.target)

    @property
    def registry(self) -> str:
        """The host that it is pulled from: what hangs with it, hangs for all its volumes."""
        return self.pinned.partition("/")[0]


def grant_of(name: str, target: str) -> str:
    """`VolumeRecord.grant`, for whoever cannot read the record."""
    return f"{name}:{target}"


class VolumeRecords:
    """The records of one state directory. Safe for threads."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "volumes"
        self._lock = threading.Lock()
        self._records: dict[str, VolumeRecord] = {}
        self.unreadable: list[Path] = []
        """Files that could not be understood: damaged, or of a later version that says so. They are left as they are, and whoever
        finds some must not take a mount for an orphan."""

    def load(self) -> None:
        """Reads all records. Raises InvalidConfig when the directory cannot be used."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(self._directory.iterdir())
        except OSError as error:
            raise unusable(error, "the state directory", self._directory, choice="--state-dir") from error
        with self._lock:
            self._records.clear()
            self.unreadable.clear()
            for path in paths:
                if path.suffix == ".tmp":
                    # A write that did not finish: the record before it, if any, still stands.
                    with suppress(OSError):
                        path.unlink()
                elif path.suffix == ".json":
                    self._load_one(path)

    def _load_one(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            if msgspec.json.decode(content, type=_Versioned).needs > VERSION:
                self.unreadable.append(path)
                return
            record = msgspec.json.decode(content, type=VolumeRecord)
        except (OSError, ValueError, RecursionError):  # of JSON that is none, or no UTF-8
            self.unreadable.append(path)
            return
        if record.name != path.stem:
            self.unreadable.append(path)
            return
        self._records[record.name] = record

    def is_unreadable(self, name: str) -> bool:
        with self._lock:
            return self._directory / f"{name}.json" in self.unreadable

    def all(self) -> list[VolumeRecord]:
        with self._lock:
            return list(self._records.values())

    def get(self, name: str) -> VolumeRecord | None:
        with self._lock:
            return self._records.get(name)

    def put(self, record: VolumeRecord) -> None:
        """Durable when it returns. Raises NoSpace or MountFailed."""
        with self._lock:
            path = self._directory / f"{record.name}.json"
            temporary = path.with_suffix(".tmp")
            try:
                _write_synced(temporary, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
                temporary.rename(path)
                self._sync_directory()
            except OSError as error:
                with suppress(OSError):
                    temporary.unlink()
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise (NoSpace if full else MountFailed)(
                    f"cannot write the record of the volume: {error.strerror}", where=str(path), fix="see --state-dir"
                ) from error
            self._records[record.name] = record

    def remove(self, name: str) -> None:
        """Durable when it returns; nothing if there is no such record. Raises MountFailed."""
        with self._lock:
            path = self._directory / f"{name}.json"
            try:
                path.unlink(missing_ok=True)
                self._sync_directory()
            except OSError as error:
                raise MountFailed(
                    f"cannot remove the record of the volume: {error.strerror}", where=str(path), fix="see --state-dir"
                ) from error
            self._records.pop(name, None)
            self.unreadable = [other for other in self.unreadable if other != path]

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class _Versioned(msgspec.Struct):
    needs: int = 1


def _write_synced(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
