"""What a holder knows of one mount, and the form in which the keeper holds it.

A `Mount` is changed only with its `lock` held, which may take as long as a worker needs to start; who only looks (status)
reads its attributes as they are.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fuse import wire
from fuse.errors import WeightlessError
from fuse.fetch.protocol import MountProgress
from fuse.mounting import device
from fuse.mounting.fetcher_connection import Connection
from fuse.mounting.restarts import History
from fuse.mounting.status import Health
from fuse.mounting.worker import Worker
from fuse.registry.access import Access
from fuse.spec import MountSpec, Prefetch

VERSION: Final = 3
NEEDS: Final = 1
"""The oldest version of this module that understands what this one keeps (docs/ARCHITECTURE.md, Versions)."""
NEEDS_WITH_LABEL: Final = 3
"""The same, of a mount with an SELinux label: an older version, which does not know of it, would take the mount for an orphan."""
_FDS: Final = 3
_WORKER: Final = "worker"
_MAX_STATE_BYTES: Final = 16 * 1024 * 1024


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """One user of a mount, and what that user may pull it with."""

    reference: str
    access: Access
    prefetch: Prefetch
    proven_at: float | None = None
    """Unix time of the proof on which the offline policy let this user in; None when the registry did. Since version 2."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """All of a mount but its descriptors: what a successor needs to serve it. Holds credentials: never on disk, never logged."""

    spec: MountSpec
    init: bytes
    reply: bytes
    mountpoint: str
    device: str
    bytes_total: int
    by_fusermount: bool
    uses: dict[str, Use]
    more: tuple[str, ...] = ()
    """Names of the descriptors after the first three, since version 2: "worker" is a pidfd of the process that serves."""
    version: int = VERSION
    needs: int = NEEDS


class _Versioned(msgspec.Struct):
    version: int = VERSION
    needs: int = 1


class Newer(ValueError):
    """Kept by a later version of the program, which alone understands it."""


_KEPT = msgspec.json.Decoder(Kept)


@dataclass(slots=True, kw_only=True)
class Mount:
    """A mount of this holder; live between the end of its creation and its unmount."""

    spec: MountSpec
    mountpoint: Path
    bytes_total: int
    by_fusermount: bool
    id: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)
    live: bool = False
    ending: bool = False
    """Somebody waits for the lock to unmount it: a worker that is being started is not waited for."""
    device_fd: int = -1
    table_fd: int = -1
    device: str = ""
    """`major:minor`, as in the mount table."""
    init: bytes = b""
    reply: bytes = b""
    uses: dict[str, Use] = field(default_factory=dict)
    worker: Worker | None = None
    left_worker: int = -1
    """A pidfd of the worker that a predecessor of this holder left, until it is known to be dead."""
    attached_to: Connection | None = None
    """The connection over which the fetcher serves it; with another one it has to be attached again."""
    history: History = field(default_factory=History)
    """Of its workers."""
    repairing: bool = False
    trouble: WeightlessError | None = None
    """Why it has no worker or fetcher just now."""
    trouble_since: float = 0.0
    stranded: int | None = None
    """Requests that a dead worker held and no other can have (kernels before 6.9), while nothing else waits."""
    progress: MountProgress | None = None
    health: Health = field(default_factory=Health)
    """As it was judged last: how long a condition lasts is known by it."""

    def __post_init__(self) -> None:
        self.id = self.spec.identity

    @property
    def minor(self) -> int:
        """The name of its connection for the kernel."""
        return int(self.device.partition(":")[2] or -1)

    @property
    def resends(self) -> bool:
        """Whether a worker that takes over is given what the dead one held."""
        return device.can_resend(self.init)

    @property
    def prefetch(self) -> Prefetch:
        """The most that any user wants."""
        return "full" if any(use.prefetch == "full" for use in self.uses.values()) else "none"

    @property
    def proven_at(self) -> float:
        """Unix time of the oldest proof on which the offline policy let a user in; 0 when the registry let all in."""
        return min((use.proven_at for use in self.uses.values() if use.proven_at is not None), default=0.0)

    def note(self, trouble: WeightlessError | None) -> None:
        """Why it is not served just now, for its status; None when it is."""
        if (self.trouble is None) != (trouble is None):
            self.trouble_since = time.time()
        self.trouble = trouble

    def tune(self) -> None:
        """Sets the kernel's knobs of this mount for what its users want of it; they are root's."""
        if not self.by_fusermount:
            sparing = self.prefetch == "none"
            device.tune(self.minor, read_ahead_kb=device.SPARING_READ_AHEAD_KB if sparing else device.READ_AHEAD_KB)

    def keepsakes(self) -> list[int]:
        """What the keeper is to hold beside device and table: a sealed memfd of the `Kept`, and what that names. The caller owns
        them."""
        worker = self.worker.pidfd() if self.worker is not None else None
        kept = Kept(
            spec=self.spec,
            init=self.init,
            reply=self.reply,
            mountpoint=os.fspath(self.mountpoint),
            device=self.device,
            bytes_total=self.bytes_total,
            by_fusermount=self.by_fusermount,
            uses=self.uses,
            more=() if worker is None else (_WORKER,),
            needs=NEEDS_WITH_LABEL if self.spec.label else NEEDS,
        )
        more = [] if worker is None else [worker]
        try:
            return [wire.sealed_memfd("weightless-mount", msgspec.json.encode(kept)), *more]
        except BaseException:
            wire.close_all(more)
            raise

    def close(self) -> None:
        """Closes its descriptors."""
        wire.close_all([fd for fd in (self.device_fd, self.table_fd, self.left_worker) if fd >= 0])
        self.device_fd = self.table_fd = self.left_worker = -1


def from_kept(fds: list[int]) -> Mount:
    """The mount that the keeper held: device, state, table, and what a later version may add. Takes over what it needs of `fds`
    on success, and closes the rest. Raises ValueError, and `Newer` when a later version may understand it."""
    if len(fds) < _FDS:
        raise ValueError(f"kept with {len(fds)} descriptors, not {_FDS}")
    device_fd, state_fd, table_fd, *more = fds
    content = wire.read_whole(state_fd, _MAX_STATE_BYTES)
    written = msgspec.json.decode(content, type=_Versioned)
    if written.needs > VERSION:
        raise Newer(f"kept by version {written.version}; this is {VERSION}, and it needs {written.needs}")
    kept = _KEPT.decode(content)
    named = dict(zip(kept.more, more, strict=False))
    left_worker = named.get(_WORKER, -1)
    wire.close_all([fd for fd in (state_fd, *more) if fd != left_worker])
    return Mount(
        spec=kept.spec,
        mountpoint=Path(kept.mountpoint),
        bytes_total=kept.bytes_total,
        by_fusermount=kept.by_fusermount,
        device_fd=device_fd,
        table_fd=table_fd,
        device=kept.device,
        init=kept.init,
        reply=kept.reply,
        uses=dict(kept.uses),
        left_worker=left_worker,
    )
