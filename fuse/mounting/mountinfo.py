"""The kernel's mount table, read from /proc: the only way in which a mount is ever asked about.

A stat of a FUSE mount waits for the process that serves it, for ever if that is dead. So nothing here looks at a mount
point itself: `resolve` walks a path by asking the table first, component by component.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from fuse.errors import InvalidRequest

FILE_SYSTEM_TYPE: Final = "fuse.weightless"
SOURCE: Final = "weightless"
_NATIVE_TYPE: Final = "overlay"
_TABLE: Final = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MAX_SYMLINKS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    mount_id: int
    parent_id: int
    device: str
    """`major:minor` of the superblock: equal for a mount and its bind mounts."""
    root: str
    mountpoint: Path
    options: tuple[str, ...]
    file_system: str
    source: str
    propagation: tuple[str, ...] = ()
    """`shared:N`, `master:N` …; a mount with none of them is private."""

    @property
    def shared(self) -> bool:
        """Whether what is mounted in it is seen where it is bound to: in the containers of pods."""
        return any(field.startswith("shared:") for field in self.propagation)

    @property
    def ours(self) -> bool:
        """Whether it shows a model, by FUSE or natively."""
        return self.file_system == FILE_SYSTEM_TYPE or self.native

    @property
    def native(self) -> bool:
        """Whether it is an overlay over the cache (`fuse.mounting.overlay`), which no process serves."""
        return self.file_system == _NATIVE_TYPE and self.source == SOURCE

    @property
    def minor(self) -> int:
        """The name of a FUSE connection below /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


class MountTable:
    """A snapshot of the mounts that this process sees, in mount order."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)

    @classmethod
    def read(cls) -> MountTable:
        return cls(parse(_TABLE.read_bytes()))

    def at(self, path: Path) -> Entry | None:
        """The topmost mount exactly at `path`, or None."""
        return next((entry for entry in reversed(self.entries) if entry.mountpoint == path), None)

    def below(self, path: Path) -> tuple[Entry, ...]:
        """All mounts at or under `path`, the latest first: the order in which they can be unmounted."""
        return tuple(entry for entry in reversed(self.entries) if entry.mountpoint.is_relative_to(path))

    def of_device(self, device: str) -> tuple[Entry, ...]:
        """A file system's mount and all binds of it."""
        return tuple(entry for entry in self.entries if entry.device == device)

    def holding(self, path: Path) -> Entry | None:
        """The mount in which `path` lies."""
        inside = (entry for entry in self.entries if path.is_relative_to(entry.mountpoint))
        return max(inside, key=lambda entry: len(entry.mountpoint.parts), default=None)


def parse(content: bytes) -> Iterator[Entry]:
    """The entries of a mountinfo file. A line that is not understood is passed over, the kernel may add to the format."""
    for line in os.fsdecode(content).splitlines():
        fields = line.split(" ")
        try:
            separator = fields.index("-", 6)
            yield Entry(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=fields[2],
                root=_unescape(fields[3]),
                mountpoint=Path(_unescape(fields[4])),
                options=tuple(fields[5].split(",")),
                file_system=fields[separator + 1],
                source=_unescape(fields[separator + 2]),
                propagation=tuple(fields[6:separator]),
            )
        except (ValueError, IndexError):
            continue


def resolve(path: Path, table: MountTable | None = None) -> Path:
    """The real path of `path`, without ever touching one of our mounts.

    A component that is the root of one of our mounts ends the walk: the rest is appended as it is. Raises FileNotFoundError
    and the other errors of readlink(2) for components that are missing; the last one need not exist.
    """
    mounts = table or MountTable.read()
    ours = {entry.mountpoint for entry in mounts.entries if entry.ours}
    pending = list(reversed(PurePosixPath(os.path.abspath(path)).parts[1:]))  # noqa: PTH100  (it must not follow links)
    current = Path("/")
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":
            current = current.parent
            continue
        current /= name
        if current in ours:
            return current.joinpath(*reversed(pending))
        try:
            target = current.readlink()
        except FileNotFoundError:
            if pending:
                raise
            return current
        except OSError:  # EINVAL: not a link
            continue
        links += 1
        if links > _MAX_SYMLINKS:
            raise InvalidRequest("too many symbolic links", where=str(path), fix="name the directory itself")
        steps = target.parts
        current = Path("/") if target.is_absolute() else current.parent
        pending.extend(reversed([step for step in steps if step != "/"]))
    return current


def _unescape(text: str) -> str:
    r"""Octal escapes for space, tab, newline, backslash and # (mangle_path in the kernel); other bytes stand as they are."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
