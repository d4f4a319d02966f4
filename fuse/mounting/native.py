"""Native mounts: models that are whole in the cache, shown by the kernel alone (`fuse.mounting.overlay`).

They need no process, so there is nothing to hand to a keeper, to watch or to replace. Three things are kept of each: the mount
itself; a pin of its blobs in the cache, which lasts until the unmount or the end of this run of the machine; and a record, by
which a successor of this holder finds it again (`start`).

Thread-safe: one lock, held while one is made or taken down, which takes milliseconds.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from fuse import threads
from fuse.errors import Conflict, MountFailed, NotFound, WeightlessError
from fuse.filesystem import table as inode_table
from fuse.filesystem.native import Section
from fuse.filesystem.tree import Tree
from fuse.mounting import device, overlay
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.reasons import Reason
from fuse.mounting.status import Health, MountStatus
from fuse.mounting.values import HolderSettings, ResolvedArtifact

VERSION: Final = 2
NEEDS: Final = 1
"""The oldest version of this module that understands a record of this one (docs/ARCHITECTURE.md, Versions)."""
_MOUNTINFO: Final = "/proc/self/mountinfo"
_SCRATCH: Final = "tree"
_UNPIN_PAUSE_S: Final = 5.0
_TABLE_LIFE_S: Final = 1.0

_log = structlog.get_logger()


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """One mount, as a successor finds it."""

    id: str
    mountpoint: str
    device: str
    """`major:minor`, as in the mount table."""
    reference: str
    digest: str
    bytes_total: int
    pin: str
    bytes_copied: int = 0
    """What of it is shown from copies, which take so much beside the blobs. Since version 2."""
    grants: dict[str, float | None]
    """Who uses it, and the proof of the offline policy that let each in (`Use.proven_at`)."""
    version: int = VERSION
    needs: int = NEEDS


class _Versioned(msgspec.Struct):
    needs: int = 1


class NativeMounts:
    """Of one holder. Call `start` first, `close` last."""

    def __init__(self, settings: HolderSettings, fetcher: Callable[[], FetcherClient]) -> None:
        self.on_gone: Callable[[MountStatus], None] | None = None
        """Called, without locks, from a thread, when somebody else has unmounted one."""
        self._settings = settings
        self._fetcher = fetcher
        self._directory = settings.native_dir or settings.run_dir / f"{settings.name}.native"
        self._mounts: dict[str, _Record] = {}
        self._lock = threading.RLock()
        self._generation = 0
        self._recent: tuple[float, int, MountTable] = 0.0, -1, MountTable(())
        self._unpins: set[str] = set()
        """Pins of mounts that are gone, while the fetcher could not be told."""
        self._closing = threading.Event()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watcher: threading.Thread | None = None

    def start(self) -> None:
        """Finds what a predecessor of this name left."""
        if not self._directory.is_dir():
            return
        device.unmount(self._directory / _SCRATCH, lazy=True)  # it may have died while it made one
        table = MountTable.read()
        for path in sorted(self._directory.glob("*.json")):
            try:
                record = _decoded(path.read_bytes())
            except (OSError, ValueError) as error:
                _log.warning("native_record_unreadable", path=str(path), error=str(error))
                continue
            if any(entry.native for entry in table.of_device(record.device)):
                self._mounts[record.id] = record
            else:
                self._gone(record)
        if self._mounts or self._unpins:
            self._watch()

    def close(self, *, keep: bool) -> None:
        """With `keep` the mounts stay, and a successor finds them; without, they are unmounted, busy ones lazily."""
        if not keep:
            for mount_id in list(self._mounts):
                try:
                    self.unmount(mount_id)
                except WeightlessError as error:
                    _log.warning("unmount_failed", mount=mount_id, error=error)
                    with suppress(WeightlessError):
                        self.unmount(mount_id, lazy=True)
        self._closing.set()
        os.write(self._woken, b"x")
        if self._watcher is not None:
            self._watcher.join()
        self._unpin_all()
        os.close(self._wake)
        os.close(self._woken)
        for directory in (self._directory / _SCRATCH, self._directory):  # which stays while it holds records
            with suppress(OSError):
                directory.rmdir()

    # ---- mounts ----

    def __contains__(self, mount_id: str) -> bool:
        return mount_id in self._mounts

    def acquire(
        self,
        mount_id: str,
        artifact: ResolvedArtifact,
        mountpoint: Path,
        *,
        grant: str,
        checkpoint: Callable[[str], None],
    ) -> None:
        """Mounts the artifact, or lets one more use the mount that it has.

        Raises NotFound when not all of it is in the cache any more, MountFailed when the kernel cannot; nothing is left then, nor
        when `checkpoint` raises.
        """
        with self._lock:
            record = self._mounts.get(mount_id)
            if record is not None:
                checkpoint("live")
                self._put(_with(record, {**record.grants, grant: artifact.proven_at}))
                return
            real = device.usable_mountpoint(mountpoint)
            tree = Tree(inode_table.decode(artifact.content))
            with ExitStack() as undo:
                whole = self._fetcher().cache_pin_whole(mount_id, artifact.parts[0].registry, artifact.content)
                undo.callback(self._unpin, whole.pin)
                checkpoint("kept")
                copies = {Section(one.blob, one.offset, one.size): one.name for one in whole.copies}
                blobs_dir = self._settings.cache_dir / "blobs"
                overlay.mount(tree, whole.names, copies, blobs_dir, real, self._scratch(), artifact.label)
                undo.callback(device.unmount, real, lazy=True)
                checkpoint("mounted")
                entry = MountTable.read().at(real)
                if entry is None or not entry.native:
                    raise MountFailed("somebody unmounted it at once, or mounted over it", where=str(real))
                undo.callback(self._forget, mount_id)
                self._put(
                    _Record(
                        id=mount_id,
                        mountpoint=os.fspath(real),
                        device=entry.device,
                        reference=artifact.reference,
                        digest=artifact.digest,
                        bytes_total=artifact.bytes_total,
                        pin=whole.pin,
                        bytes_copied=sum(one.size for one in whole.copies),
                        grants={grant: artifact.proven_at},
                    )
                )
                checkpoint("live")
                undo.pop_all()
        self._watch()
        _log.info("native_mount_made", mount=mount_id, mountpoint=str(real), reference=artifact.reference)

    def release(self, mount_id: str, grant: str) -> int:
        """How many uses remain; the mount stays."""
        with self._lock:
            record = self._mounts.get(mount_id)
            if record is None:
                return 0
            remaining = {name: proof for name, proof in record.grants.items() if name != grant}
            if len(remaining) != len(record.grants):
                self._put(_with(record, remaining))
            return len(remaining)

    def unmount(self, mount_id: str, *, lazy: bool = False) -> None:
        """Raises Conflict when it is busy (never if `lazy`), or mounted over; then nothing has changed."""
        with self._lock:
            record = self._mounts.get(mount_id)
            if record is None:
                return
            mountpoint = Path(record.mountpoint)
            there = MountTable.read().at(mountpoint)
            if there is not None and there.device == record.device:
                device.unmount(mountpoint, lazy=lazy)
            elif there is not None and self._is_at(mountpoint, record.device):
                raise Conflict(f"{there.file_system} is mounted over it", where=record.mountpoint)
            self._forget(mount_id)
            self._unpin(record.pin)
        _log.info("native_mount_ended", mount=mount_id, mountpoint=record.mountpoint)

    def find(self, mountpoint: Path) -> str | None:
        """The id of the mount at a real path."""
        return next((one.id for one in list(self._mounts.values()) if one.mountpoint == os.fspath(mountpoint)), None)

    def status(self, mount_id: str) -> MountStatus:
        """Raises NotFound."""
        record = self._mounts.get(mount_id)
        if record is None:
            raise NotFound("no such mount", where=mount_id)
        return _describe(record, MountTable.read())

    def health(self, mount_id: str) -> Health:
        """The condition, by the mount table of the last second: it may be asked of many mounts, often. Raises NotFound."""
        record = self._mounts.get(mount_id)
        if record is None:
            raise NotFound("no such mount", where=mount_id)
        return _describe(record, self._recent_table()).condition

    def statuses(self) -> list[MountStatus]:
        records = list(self._mounts.values())
        table = MountTable.read() if records else MountTable(())
        return [_describe(record, table) for record in records]

    # ---- inside ----

    def _put(self, record: _Record) -> None:
        """Remembers the mount, for a successor as well. Raises MountFailed."""
        path = self._path(record.id)
        temporary = path.with_suffix(".new")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(record))
            temporary.replace(path)
        except OSError as error:
            raise MountFailed(
                f"the record of the mount cannot be written: {error.strerror}", where=str(path)
            ) from error
        # Before it can be asked for: no table that was read before it was mounted may be believed of it.
        self._generation += 1
        self._mounts[record.id] = record

    def _recent_table(self) -> MountTable:
        read_at, generation, table = self._recent
        if generation != self._generation or time.monotonic() - read_at > _TABLE_LIFE_S:
            generation = self._generation
            table = MountTable.read()
            self._recent = time.monotonic(), generation, table
        return table

    def _forget(self, mount_id: str) -> None:
        self._mounts.pop(mount_id, None)
        with suppress(OSError):
            self._path(mount_id).unlink()

    def _path(self, mount_id: str) -> Path:
        return self._directory / f"{mount_id}.json"

    def _scratch(self) -> Path:
        scratch = self._directory / _SCRATCH
        try:
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MountFailed(f"cannot be made: {error.strerror}", where=str(scratch)) from error
        return scratch

    @staticmethod
    def _is_at(mountpoint: Path, name: str) -> bool:
        return any(entry.mountpoint == mountpoint for entry in MountTable.read().of_device(name))

    def _unpin(self, pin: str) -> None:
        """Lets the cache have its blobs back; soon, if the fetcher cannot be told now."""
        try:
            self._fetcher().cache_unpin((pin,))
        except NotFound:
            pass
        except WeightlessError as error:
            _log.warning("native_mount_not_unpinned", error=error)
            self._unpins.add(pin)

    def _unpin_all(self) -> bool:
        waiting, self._unpins = self._unpins, set()
        for pin in waiting:
            self._unpin(pin)
        return not self._unpins

    def _gone(self, record: _Record) -> None:
        self._forget(record.id)
        self._unpins.add(record.pin)
        _log.info("native_mount_gone", mount=record.id, mountpoint=record.mountpoint)

    # ---- the watcher ----

    def _watch(self) -> None:
        with self._lock:
            if self._watcher is None and not self._closing.is_set():
                watcher = threading.Thread(target=self._run, name="native-mounts", daemon=True)
                self._watcher = watcher if threads.begin(watcher) else None

    def _run(self) -> None:
        """Waits for changes of the mount table: poll(2) tells of them (proc_pid_mounts(5))."""
        with open(_MOUNTINFO, "rb") as table:
            poller = select.poll()
            poller.register(table, select.POLLPRI)
            poller.register(self._wake, select.POLLIN)
            while not self._closing.is_set():
                try:
                    for status in self._ended():
                        if self.on_gone is not None:
                            self.on_gone(status)
                    told = self._unpin_all()
                except Exception:  # noqa: BLE001  (the edge of a thread)
                    _log.exception("native_mounts_not_looked_at")
                    told = False
                poller.poll(None if told else _UNPIN_PAUSE_S * 1000)

    def _ended(self) -> Iterator[MountStatus]:
        """Forgets the mounts that the kernel does not have any more, wherever they were bound."""
        with self._lock:
            table = MountTable.read()
            gone = [record for record in self._mounts.values() if not table.of_device(record.device)]
            statuses = [_describe(record, table) for record in gone]
            for record in gone:
                self._gone(record)
        yield from statuses


def _decoded(content: bytes) -> _Record:
    """Raises ValueError for what is no record, or needs a later version."""
    needs = msgspec.json.decode(content, type=_Versioned).needs
    if needs > VERSION:
        raise ValueError(f"it needs version {needs}, this is {VERSION}")
    return msgspec.json.decode(content, type=_Record)


def _with(record: _Record, grants: dict[str, float | None]) -> _Record:
    return msgspec.structs.replace(record, grants=grants)


def _describe(record: _Record, table: MountTable) -> MountStatus:
    places = [os.fspath(entry.mountpoint) for entry in table.of_device(record.device)]
    proven_at = min((proof for proof in record.grants.values() if proof is not None), default=0.0)
    condition = Health(proven_at=proven_at)
    if not places:
        words = "the kernel has ended the file system: it was unmounted"
        condition = Health(state="broken", reason=words, reason_code=Reason.UNMOUNTED, since=time.time())
    return MountStatus(
        id=record.id,
        mountpoint=record.mountpoint,
        reference=record.reference,
        digest=record.digest,
        worker_pid=None,
        keeper_pid=None,
        fetcher_pid=None,
        holder_pid=os.getpid(),
        bytes_cached=record.bytes_total,
        bytes_total=record.bytes_total,
        bytes_copied=record.bytes_copied,
        served_by="native",
        condition=condition,
        targets=tuple(place for place in places if place != record.mountpoint),
        grants=tuple(record.grants),
    )
