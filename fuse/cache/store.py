"""The blobs on disk: where they lie, how they are made, found again, set aside and removed.

Layout below the root (version 1): `version`; `blobs/<algorithm>/<hex>.<size>.<scope>.data` and `.index`, the size being what
some manifest claimed, so that a lie about it harms only its own mount, and the scope standing for the registry that the bytes
come from, so that they are served to nobody else; `quarantine/` with what did not match its digest; `objects/`
(`fuse.cache.objects`). Files are 0444 in directories of 0700. A pair is there when its index is: that is renamed into place
last. Whole blobs are removed by unlinking, never by punching holes: a reader that has one open keeps its bytes.

Written by one process (the fetcher, under its lock). Methods are safe for many threads as long as no two make or remove the
same blob at once, which the fetcher's engine sees to.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from fuse.artifact.digest import Digest
from fuse.cache import index as block_index
from fuse.cache.index import REJECTED, VERIFIED, IndexReader, IndexWriter
from fuse.cache.objects import ObjectStore
from fuse.cache.quota import Candidate, Disk
from fuse.cache.writeback import Writeback
from fuse.errors import Corrupt, InvalidArtifact, InvalidConfig

VERSION: Final = 1
_WRITE_BYTES: Final = 128 * 1024
"""At once. Larger writes make file systems take larger folios (ext4: up to 2 MiB), which come from memory that nobody has used
yet: measured in a virtual machine, 1 MiB a call wrote 0.8 to 1.7 GB/s, 128 KiB 5.3 GB/s."""
_SCOPE: Final = re.compile(r"[0-9a-f]{32}")
_COPIES: Final = "00000000"
"""How scopes of copies begin. A registry whose own does so by chance, one in four billion, has its blobs evicted first."""
UNFINISHED: Final = ".copy."
"""How the names of copies begin while they are being made; as all names with a dot, swept at the start."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BlobKey:
    """What names a blob in the cache: what it is said to be, and by whom.

    A digest proves nothing of a range before the whole blob is there, and anybody may run a registry that calls any digest its
    own: it must neither put bytes into others' mounts nor open what others fetched. So the same digest from two registries is two
    blobs. Within one registry a digest is one: that registry decides who may pull it.
    """

    digest: Digest
    size: int
    scope: str
    """`scope_of` the registry that it is fetched from."""

    def __str__(self) -> str:
        return f"{self.digest}.{self.size}.{self.scope}"

    @property
    def is_copy(self) -> bool:
        """Whether it is a part of another blob, copied out of it (`fuse.cache.copies`), which no registry has."""
        return self.scope.startswith(_COPIES)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError or InvalidArtifact."""
        digest, size, scope = text.split(".")
        if not _SCOPE.fullmatch(scope):
            raise ValueError(f"not the scope of a blob: {scope!r}")
        return cls(Digest.parse(digest), int(size), scope)


def scope_of(registry: str) -> str:
    """Stands for a registry (its host) in a `BlobKey`. Long enough that nobody finds another one with it."""
    return hashlib.sha256(registry.encode()).hexdigest()[:32]


def scope_of_copies(scope: str) -> str:
    """Of copies of parts of blobs of this scope: of its own, so that no registry can name one, and nobody fetches into it."""
    return _COPIES + hashlib.sha256(f"copies of {scope}".encode()).hexdigest()[: 32 - len(_COPIES)]


def paths(root: Path, key: BlobKey) -> tuple[Path, Path]:
    """Where data and index of a blob lie in the cache directory `root`."""
    base = root / "blobs" / key.digest.algorithm / str(key).partition(":")[2]
    return base.with_name(base.name + ".data"), base.with_name(base.name + ".index")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    key: BlobKey
    bytes_cached: int
    disk_bytes: int
    complete: bool
    verified: bool
    used_at: float


class BlobWriter:
    """The one writer of a blob: its data file and its index. Blocks may be written by several threads, each block by one."""

    def __init__(
        self,
        key: BlobKey,
        data_path: Path,
        index_path: Path,
        data_fd: int,
        index: IndexWriter,
        writeback: Writeback,
    ) -> None:
        self.key: Final = key
        self.index: Final = index
        self._data_path = data_path
        self._index_path = index_path
        self.fd: Final = data_fd
        self._writeback = writeback
        # The kernel lets one write into a file at a time, and spins while another is at it: waiting here costs no CPU.
        self._writing = threading.Lock()

    def write(self, block: int, content: memoryview) -> None:
        """Writes a block's data; the caller publishes it afterwards. Raises OSError (ENOSPC, EDQUOT, EROFS, EIO)."""
        offset = block * block_index.BLOCK_BYTES
        written = 0
        with self._writing:
            while written < len(content):
                written += os.pwrite(self.fd, content[written : written + _WRITE_BYTES], offset + written)
        self._writeback.begin(self.fd, offset, written)

    def read_into(self, block: int, buffer: memoryview) -> memoryview:
        """The block's bytes in `buffer`; fewer than expected where the file ends early. Raises OSError."""
        length = block_index.block_length(self.key.size, block)
        got = os.preadv(self.fd, [buffer[:length]], block * block_index.BLOCK_BYTES)
        return buffer[:got]

    def record(self, block: int, entry: int) -> None:
        """Notes a block's entry on the disk, where the next start finds it; what cannot be noted is fetched again then."""
        try:
            self.index.record(block, entry)
        except OSError as error:
            _log.warning("block_not_recorded", digest=str(self.key.digest), block=block, error=str(error))

    def record_proven(self, block: int, entry: int, proof: int) -> None:
        """As `record`, for a block that the chunk index with the mark `proof` has proven."""
        self.record(block, entry)
        try:
            self.index.record_mark(block, entry, proof)
        except OSError as error:
            _log.warning("mark_not_recorded", digest=str(self.key.digest), block=block, error=str(error))

    def record_lost(self, runs: Sequence[tuple[int, int]]) -> None:
        """As `record`, for runs (first, count) of blocks that were forgotten, and for the flags."""
        if not runs:
            return
        try:
            for first, count in runs:
                self.index.record_absent(first, count)
        except OSError as error:
            _log.warning("loss_not_recorded", digest=str(self.key.digest), error=str(error))
        self.record_flags()

    def record_flags(self) -> None:
        """As `record`, for the flags."""
        try:
            self.index.record_flags()
        except OSError as error:
            _log.warning("flags_not_recorded", digest=str(self.key.digest), error=str(error))

    def block_is_sound(self, block: int, buffer: memoryview) -> bool:
        """Whether the block is there and matches its checksum; its bytes are left in `buffer`."""
        try:
            content = self.read_into(block, buffer)
        except OSError as error:
            _log.warning("block_unreadable", digest=str(self.key.digest), block=block, error=str(error))
            return False
        return block_index.entry_of(content) == self.index[block]

    def reader_fds(self) -> tuple[int, int]:
        """Fresh read-only descriptors of data and index, for a reader. The caller owns them. Raises OSError."""
        # By descriptor: the name may have been removed, or another blob may bear it by now.
        data = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return data, self.index.reader_fd()
        except BaseException:
            os.close(data)
            raise

    def keep_marks(self) -> None:
        """Makes room in the index for which blocks a chunk index has proven. Without, they are proven again after a restart."""
        try:
            self.index.open_marks()
        except (OSError, Corrupt) as error:
            _log.warning("marks_not_kept", digest=str(self.key.digest), error=str(error))

    def written(self, unit_bytes: int) -> frozenset[int]:
        """In units of so many bytes: where the data file is not a hole. Says nothing about what is there."""
        found: set[int] = set()
        end = 0
        with suppress(OSError):  # ENXIO: nothing follows
            while end < self.key.size:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
                end = os.lseek(self.fd, start, os.SEEK_HOLE)
                found.update(range(start // unit_bytes, -(-end // unit_bytes)))
        return frozenset(found)

    def sync(self) -> None:
        """Waits until data and index are on the disk. Raises OSError."""
        os.fsync(self.fd)
        self.index.flush()

    def touch(self) -> None:
        """Notes that the blob is in use now."""
        with suppress(OSError):
            os.utime(self._index_path)

    def disk_bytes(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        self.index.close()
        os.close(self.fd)


class CacheStore:
    """A cache directory."""

    def __init__(self, root: Path) -> None:
        """Opens or makes the layout. Raises InvalidConfig when `root` holds something else, or a newer version's cache."""
        self._root = root
        self._blobs = root / "blobs"
        self._quarantine = root / "quarantine"
        self._writeback = Writeback()
        self._make_layout()
        self.objects: Final = ObjectStore(root / "objects")
        self._remove_leftovers()

    def _make_layout(self) -> None:
        if not examine(self._root):
            temporary = self._root / ".version"
            temporary.write_text(f"{VERSION}\n")
            temporary.replace(self._root / "version")
        for directory in (self._blobs / "sha256", self._blobs / "sha512", self._quarantine):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _remove_leftovers(self) -> None:
        """What a killed process left half made: temporary files, and data without an index."""
        for directory in (self._blobs / "sha256", self._blobs / "sha512"):
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
            self._make_layout()  # somebody has emptied the cache directory under us
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
        return BlobWriter(key, data_path, index_path, data_fd, index, self._writeback)

    def _create(self, key: BlobKey, data_path: Path, index_path: Path) -> BlobWriter:
        temporary = index_path.with_name(f".{index_path.name}")
        data_fd = os.open(data_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            os.fchmod(data_fd, 0o444)
            os.ftruncate(data_fd, key.size)
            with suppress(FileNotFoundError):
                temporary.unlink()
            index_fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                os.fchmod(index_fd, 0o444)
                block_index.create(index_fd, key.digest, key.size)
                index = IndexWriter(index_fd)
            finally:
                os.close(index_fd)
            temporary.replace(index_path)
        except BaseException:
            os.close(data_fd)
            for path in (temporary, data_path):
                with suppress(OSError):
                    path.unlink()
            raise
        return BlobWriter(key, data_path, index_path, data_fd, index, self._writeback)

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
        for algorithm in ("sha256", "sha512"):
            for entry in os.scandir(self._blobs / algorithm):
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


def examine(root: Path) -> bool:
    """Whether `root` is a cache of this version already; changes nothing.

    Raises InvalidConfig when it is of another version, or holds things that are not ours.
    """
    where = str(root.resolve())
    try:
        text = (root / "version").read_text().strip()
    except FileNotFoundError:
        text = ""
    if text.isdecimal():
        if int(text) != VERSION:
            raise InvalidConfig(
                f"the cache is of version {text}, this program knows version {VERSION}",
                where=where,
                fix="use a newer weightless, or another --cache-dir",
            )
        return True
    foreign = [entry.name for entry in os.scandir(root) if not _is_ours(entry.name)]
    if foreign:
        raise InvalidConfig(
            f"the directory is no cache but holds other things ({min(foreign)!r})",
            where=where,
            fix="name an empty or new directory as the cache directory",
        )
    return False


def _is_ours(name: str) -> bool:
    return name.startswith(("fetcher.", ".version")) or name in (
        "version",
        "blobs",
        "quarantine",
        "objects",
        "lost+found",
    )


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
