"""The blobs on disk: how they are made, found again, set aside and removed.

Files are 0444 in directories of 0700. A pair of data and index is there when its index is: that is renamed into place last. Whole
blobs are removed by unlinking, never by punching holes: a reader that has one open keeps its bytes.

Written by one process (the fetcher, under its lock). Methods are safe for many threads as long as no two make or remove the
same blob at once, which the fetcher's engine sees to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from fuse.cache import index as block_index
from fuse.cache import layout
from fuse.cache.index import REJECTED, VERIFIED, IndexReader, IndexWriter
from fuse.cache.keys import ALGORITHMS, BlobKey, paths
from fuse.cache.objects import ObjectStore
from fuse.cache.quota import Candidate, Disk
from fuse.cache.writeback import Writeback
from fuse.cache.writer import BlobWriter
from fuse.errors import Corrupt, InvalidArtifact

UNFINISHED: Final = ".copy."
"""How the names of copies begin while they are being made; as all names with a dot, swept at the start."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    key: BlobKey
    bytes_cached: int
    disk_bytes: int
    complete: bool
    verified: bool
    used_at: float


class CacheStore:
    """A cache directory."""

    def __init__(self, root: Path) -> None:
        """Opens or makes the layout. Raises InvalidConfig when `root` holds something else, or a newer version's cache."""
        self._root = root
        self._blobs = root / "blobs"
        self._quarantine = root / "quarantine"
        self._writeback = Writeback()
        layout.make(root)
        self.objects: Final = ObjectStore(root / "objects")
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """What a killed process left half made: temporary files, and data without an index."""
        for directory in map(self.directory, ALGORITHMS):
            names = {entry.name for entry in os.scandir(directory)}
            for name in names:
                if name.startswith(".") or (
                    name.endswith(".data") and f"{name.removesuffix('.data')}.index" not in names
                ):
                    with suppress(OSError):
                        (directory / name).unlink()

    def directory(self, algorithm: str) -> Path:
        """Where the blobs lie whose digests are of this algorithm."""
        return self._blobs / algorithm

    def paths(self, key: BlobKey) -> tuple[Path, Path]:
        """Where data and index of a blob lie."""
        return paths(self._root, key)

    def place(self, key: BlobKey) -> str:
        """Where a blob's data lies, relative to `blobs` in the cache directory."""
        return str(self.paths(key)[0].relative_to(self._blobs))

    def touch(self, key: BlobKey) -> None:
        """Notes that a blob was in use until now, if it is there."""
        with suppress(OSError):
            os.utime(self.paths(key)[1])

    def open(self, key: BlobKey) -> BlobWriter:
        """The writer of a blob, found or made; what is found damaged is made anew. Raises OSError (ENOSPC …)."""
        data_path, index_path = self.paths(key)
        with suppress(FileNotFoundError):
            try:
                return self._open_existing(key, data_path, index_path)
            except (Corrupt, InvalidArtifact) as error:
                _log.warning("blob_discarded", digest=str(key.digest), reason=error.what)
        self.remove(key)
        try:
            return self._create(key, data_path, index_path)
        except FileNotFoundError:
            layout.make(self._root)  # somebody has emptied the cache directory under us
            return self._create(key, data_path, index_path)

    def _open_existing(self, key: BlobKey, data_path: Path, index_path: Path) -> BlobWriter:
        index_fd = _open_writable(index_path)
        try:
            index = IndexWriter(index_fd)
        finally:
            os.close(index_fd)
        try:
            data_fd = _open_data(key, data_path, index)
        except BaseException:
            index.close()
            raise
        return BlobWriter(key, index_path, data_fd, index, self._writeback)

    def _create(self, key: BlobKey, data_path: Path, index_path: Path) -> BlobWriter:
        temporary = index_path.with_name(f".{index_path.name}")
        with ExitStack() as undo:
            data_fd = os.open(data_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            undo.callback(_unlink, data_path)
            undo.callback(os.close, data_fd)
            os.fchmod(data_fd, 0o444)
            os.ftruncate(data_fd, key.size)
            _unlink(temporary)
            index_fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            undo.callback(_unlink, temporary)
            try:
                os.fchmod(index_fd, 0o444)
                block_index.create(index_fd, key.digest, key.size)
                index = IndexWriter(index_fd)
            finally:
                os.close(index_fd)
            undo.callback(index.close)
            temporary.replace(index_path)
            undo.pop_all()
        return BlobWriter(key, index_path, data_fd, index, self._writeback)

    def remove(self, key: BlobKey) -> None:
        """Unlinks a blob, the index first: what is cut short here is swept at the next start."""
        data_path, index_path = self.paths(key)
        for path in (index_path, data_path):
            with suppress(FileNotFoundError):
                path.unlink()

    def quarantine(self, key: BlobKey) -> None:
        """Sets a blob aside under a name that no reader looks for; it goes first when room is needed."""
        data_path, index_path = self.paths(key)
        aside = self._quarantine / f"{key.digest.algorithm}-{key.digest.hex}.{key.size}.{key.scope}.{time.time_ns()}"
        try:
            data_path.replace(aside)
        except OSError:
            with suppress(OSError):
                data_path.unlink()
        with suppress(OSError):
            index_path.unlink()

    def empty_quarantine(self) -> None:
        """Removes what was set aside."""
        for entry in os.scandir(self._quarantine):
            with suppress(OSError):
                Path(entry.path).unlink()

    def keys(self) -> Iterator[BlobKey]:
        """Every blob of which something is cached."""
        for algorithm in ALGORITHMS:
            for entry in os.scandir(self.directory(algorithm)):
                if entry.name.startswith(".") or not entry.name.endswith(".index"):
                    continue
                with suppress(InvalidArtifact, ValueError):
                    yield BlobKey.parse(f"{algorithm}:{entry.name.removesuffix('.index')}")

    def stored(self, key: BlobKey) -> StoredBlob | None:
        """What is on disk of a blob; None if nothing usable."""
        data_path, index_path = self.paths(key)
        try:
            data, used_at = data_path.stat(), index_path.stat().st_mtime
            fd = os.open(index_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                index = IndexReader(fd, follow=False)
            finally:
                os.close(fd)
        except (OSError, Corrupt, InvalidArtifact):
            return None
        try:
            return StoredBlob(
                key=key,
                bytes_cached=index.bytes_present(),
                disk_bytes=data.st_blocks * 512 + block_index.index_bytes(key.size),
                complete=index.count_present() == index.blocks,
                verified=index.flags & VERIFIED != 0,
                used_at=used_at,
            )
        finally:
            index.close()

    def candidates(self, pinned: frozenset[str]) -> list[Candidate]:
        """What takes room and could be removed, quarantined blobs included (their name begins with `quarantine/`)."""
        found: list[Candidate] = []
        for key in self.keys():
            data_path, index_path = self.paths(key)
            with suppress(OSError):
                index = index_path.stat()
                used = (data_path.stat().st_blocks + index.st_blocks) * 512
                name = str(key)
                found.append(
                    Candidate(
                        name=name,
                        disk_bytes=used,
                        used_at=index.st_mtime,
                        pinned=name in pinned,
                        copy=key.is_copy,
                    )
                )
        for entry in os.scandir(self.directory("sha256")):
            if entry.name.startswith(UNFINISHED):  # it takes room, and its writer alone removes it
                with suppress(OSError):
                    status = entry.stat()
                    used = status.st_blocks * 512
                    found.append(Candidate(name=entry.name, disk_bytes=used, used_at=status.st_mtime, pinned=True))
        for entry in os.scandir(self._quarantine):
            with suppress(OSError):
                status = entry.stat()
                found.append(
                    Candidate(
                        name=f"quarantine/{entry.name}",
                        disk_bytes=status.st_blocks * 512,
                        used_at=status.st_mtime,
                        pinned=False,
                        rejected=True,
                    )
                )
        return found

    def evict(self, candidate: Candidate) -> None:
        """Removes what `candidates` named."""
        if candidate.rejected:
            with suppress(OSError):
                (self._root / candidate.name).unlink()
            return
        self.remove(BlobKey.parse(candidate.name))

    def gone(self) -> bool:
        """Whether the cache directory itself has been removed: what is open can be read on, but nothing can be made there."""
        try:
            return self._root.stat().st_nlink == 0
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def used_bytes(self) -> int:
        """What all blobs take on disk."""
        return sum(candidate.disk_bytes for candidate in self.candidates(frozenset()))

    def disk(self) -> Disk:
        """The file system that the cache is on. Raises OSError."""
        status = os.statvfs(self._root)
        return Disk(total_bytes=status.f_blocks * status.f_frsize, free_bytes=status.f_bavail * status.f_frsize)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _open_data(key: BlobKey, path: Path, index: IndexReader) -> int:
    if index.digest != key.digest or index.size != key.size or index.flags & REJECTED:
        raise Corrupt("the index is another blob's, or its blob was rejected")
    fd = _open_writable(path)
    if os.fstat(fd).st_size == key.size:
        return fd
    os.close(fd)
    raise Corrupt("the data is not as long as the index says")


def _open_writable(path: Path) -> int:
    """Opens one of our files for writing: its mode forbids that even to us, so it is lifted for a moment."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags)
    except PermissionError:
        path.chmod(0o644)
        fd = os.open(path, flags)
    os.fchmod(fd, 0o444)
    return fd
