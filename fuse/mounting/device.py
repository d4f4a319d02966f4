"""The FUSE device and mount(2), as root: what the kernel has to be told, and nothing about what is mounted.

Every function here returns quickly whatever the state of the process that serves a mount: none looks into one.
mount(2) is called through ctypes because the standard library does not have it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
from pathlib import Path
from typing import Final

import structlog

from fuse.errors import Conflict, InvalidRequest, Missing, MountFailed
from fuse.mounting import selinux
from fuse.mounting.mountinfo import FILE_SYSTEM_TYPE, SOURCE, MountTable, resolve

_DEVICE: Final = "/dev/fuse"
OVERLAY: Final = "overlay"
TMPFS: Final = "tmpfs"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_NOATIME, _MS_BIND = 1, 2, 4, 8, 32, 1024, 4096
_GUARDED: Final = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
"""The same on every architecture, as all system calls since Linux 5.1 are."""
_AT_FDCWD, _OPEN_TREE_CLONE = -100, 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_BENEATH = 4, 0x200
_FLAGS2: Final = 40 + 16
_INIT_EXT, _HAS_RESEND = 1 << 30, 1 << 7
"""FUSE_INIT_EXT, and FUSE_HAS_RESEND (1 << 39) as it stands in `flags2` of fuse_init_in (include/uapi/linux/fuse.h)."""
_INIT_LIMIT_S: Final = 10.0
_READ_BUFFER_BYTES: Final = 1024 * 1024 + 4096  # the kernel refuses buffers smaller than its largest request

READ_AHEAD_KB: Final = 1024
"""The best of 128 KiB to 16 MiB when measured; larger helps on more cores only."""
SPARING_READ_AHEAD_KB: Final = 512
"""Where only what is read shall be fetched: the kernel reads half of this before a page fault and twice as much behind it."""
MAX_BACKGROUND: Final = 64
CONGESTION_THRESHOLD: Final = 48

_log = structlog.get_logger()
_libc = ctypes.CDLL(None, use_errno=True)


def usable_mountpoint(path: Path) -> Path:
    """The real path of a directory that nothing is mounted on.

    Raises InvalidRequest when it is missing or no directory, Conflict when it is mounted already.
    """
    table = MountTable.read()
    try:
        real = resolve(path, table)
    except OSError as error:
        raise InvalidRequest(
            f"the mount point cannot be reached: {error.strerror}", where=str(path), fix="create it first"
        ) from None
    there = table.at(real)
    if there is not None:
        raise Conflict(f"{there.file_system} is mounted there already", where=str(path), fix="unmount it first")
    inside = table.holding(real)
    if inside is not None and inside.ours:
        raise InvalidRequest(
            f"the mount point lies inside of a mounted model, {inside.mountpoint}",
            where=str(path),
            fix="name a directory outside of it",
        )
    try:
        mode = os.lstat(real).st_mode
    except OSError as error:
        raise InvalidRequest(
            f"the mount point cannot be used: {error.strerror}", where=str(path), fix="create it first"
        ) from None
    if not stat.S_ISDIR(mode):
        raise InvalidRequest("the mount point is not a directory", where=str(path), fix="name a directory")
    return real


def open_device() -> int:
    """A fresh /dev/fuse; the caller owns it."""
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        fix = (
            "load the kernel module: modprobe fuse"
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
            else "it must be readable and writable"
        )
        raise Missing(f"the FUSE device cannot be opened: {error.strerror}", where=_DEVICE, fix=fix) from None


def mount(device: int, mountpoint: Path, label: str = "") -> None:
    """Mounts the file system that `device` will serve. `mountpoint` is a real path, as `usable_mountpoint` gives it.

    `label`: the SELinux context of all its files, or empty.
    """
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    # By descriptor, so that the directory cannot be exchanged for a link between check and use.
    directory = _open_directory(mountpoint)
    try:
        flags = _GUARDED | _MS_NOATIME
        _mount(SOURCE, f"/proc/self/fd/{directory}", FILE_SYSTEM_TYPE, flags, options, shown=mountpoint, label=label)
    finally:
        os.close(directory)


def mount_file_system(kind: str, mountpoint: Path, options: str, *, writable: bool = False, label: str = "") -> None:
    """Mounts a file system of the kernel's own, `OVERLAY` or `TMPFS`, guarded as `mount` is. Raises MountFailed."""
    directory = _open_directory(mountpoint)
    try:
        flags = (_GUARDED & ~_MS_RDONLY if writable else _GUARDED) | _MS_NOATIME
        _mount(SOURCE, f"/proc/self/fd/{directory}", kind, flags, options, shown=mountpoint, label=label)
    finally:
        os.close(directory)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Raises Conflict when it is in use (never if `lazy`); a mount that is not there is no error."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return
    if number == errno.EBUSY:
        raise busy(mountpoint)
    raise MountFailed(f"cannot unmount: {os.strerror(number)}", where=str(mountpoint))


def busy(mountpoint: Path) -> Conflict:
    """The error for a mount that is in use, naming who uses it as far as that can be seen."""
    users = _users(mountpoint)
    return Conflict(
        f"the mount is in use{' by ' + ', '.join(users) if users else ''}",
        where=str(mountpoint),
        fix="end what uses it, or unmount it lazily",
    )


def bind(source: Path, target: Path) -> None:
    """Shows `source` at the directory `target` too, read-only. On failure nothing is left mounted.

    A bind of one of our mounts has its guarding flags from the first moment on, for they are copied; the remount makes sure.
    """
    directory = _open_directory(target)
    try:
        _mount(os.fspath(source), f"/proc/self/fd/{directory}", "none", _MS_BIND, "", shown=target)
    finally:
        os.close(directory)
    try:
        flags = _MS_BIND | _MS_REMOUNT | _GUARDED | _MS_NOATIME
        _mount("none", os.fspath(target), "none", flags, "", shown=target)
    except MountFailed:
        unmount(target, lazy=True)
        raise


def exchange(source: Path, target: Path) -> bool:
    """Shows `source` at `target` in place of the mount that is there, as `bind` does: nobody sees the directory below them.

    False when nothing was done, since the kernel cannot: before Linux 6.5 (MOVE_MOUNT_BENEATH of move_mount(2)), or where
    propagation forbids it.
    """
    tree = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if tree < 0:
        return False
    try:
        beneath = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_BENEATH
        if _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), beneath) != 0:
            return False
    finally:
        os.close(tree)
    unmount(target, lazy=True)
    return True


def read_init(device: int, limit_s: float = _INIT_LIMIT_S) -> bytes:
    """The kernel's FUSE_INIT, the first message on a fresh device."""
    poller = select.poll()
    poller.register(device, select.POLLIN)
    if not poller.poll(limit_s * 1000):
        raise MountFailed(f"the kernel sent no FUSE_INIT within {limit_s:.0f} s")
    try:
        return os.read(device, _READ_BUFFER_BYTES)
    except OSError as error:
        raise MountFailed(f"FUSE_INIT cannot be read: {error.strerror}") from None


def gone(device: int) -> bool:
    """Whether the kernel has ended this connection: the last mount of it was unmounted, or it was aborted."""
    poller = select.poll()
    poller.register(device, 0)
    return any(events & select.POLLERR for _, events in poller.poll(0))


def can_resend(init: bytes) -> bool:
    """Whether the kernel that sent this FUSE_INIT gives a worker that takes over what the dead one held (Linux 6.9).

    `WEIGHTLESS_TEST_WITHOUT_RESEND` is for tests, and plays an older kernel.
    """
    if os.environ.get("WEIGHTLESS_TEST_WITHOUT_RESEND"):
        return False
    if len(init) < _FLAGS2 + 4:
        return False
    flags, flags2 = struct.unpack_from("<II", init, _FLAGS2 - 4)
    return bool(flags & _INIT_EXT and flags2 & _HAS_RESEND)


def resend(device: int) -> None:
    """FUSE_NOTIFY_RESEND: the kernel sends again what a dead worker had read and not answered. Before Linux 6.9: nothing."""
    try:
        os.write(device, struct.pack("<IiQ", 16, 7, 0))
    except OSError as error:
        _log.info("resend_refused", error=error.strerror)


def tune(minor: int, *, read_ahead_kb: int = READ_AHEAD_KB) -> None:
    """Sets what makes reads large and many: best effort, since it needs /sys to be writable."""
    connection = f"/sys/fs/fuse/connections/{minor}"
    for path, value in (
        (f"/sys/class/bdi/0:{minor}/read_ahead_kb", read_ahead_kb),
        (f"{connection}/max_background", MAX_BACKGROUND),
        (f"{connection}/congestion_threshold", CONGESTION_THRESHOLD),
    ):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(value).encode())
            finally:
                os.close(fd)
        except OSError as error:
            _log.debug("mount_not_tuned", path=path, error=error.strerror)


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(f"the mount point cannot be used: {error.strerror}", where=str(path)) from None


def _mount(source: str, target: str, kind: str, flags: int, options: str, *, shown: Path, label: str = "") -> None:
    data = (options + selinux.option(label)).encode()
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data)
    if result != 0:
        number = ctypes.get_errno()
        cause, fix = selinux.refused(number, label)
        if not fix and number in (errno.EPERM, errno.EACCES):
            fix = "mounting needs root with CAP_SYS_ADMIN"
        raise MountFailed(f"mount: {cause or os.strerror(number)}", where=str(shown), fix=fix)


def _users(mountpoint: Path, limit: int = 3) -> list[str]:
    """Processes with a file or directory of the mount open, as far as /proc shows them. Links are read, never followed."""
    prefix = f"{mountpoint}/"
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if len(found) == limit:
            break
        try:
            links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
            if any(_leads_below(link, prefix) for link in links):
                found.append(f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})")
        except OSError:
            continue
    return found


def _leads_below(link: str, prefix: str) -> bool:
    """False for a file that was closed since it was listed."""
    try:
        return f"{os.readlink(link)}/".startswith(prefix)  # noqa: PTH115  (asked of every open file of the machine)
    except OSError:
        return False
