"""Real mounts for tests of the worker: /dev/fuse and mount(2), by ctypes, and their removal whatever happened."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 1, 2, 4, 8, 1024
MNT_DETACH = 2
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _MOUNT_ATTR_IDMAP = -100, 0x1000, 0x00100000


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseMount:
    path: Path
    device: int
    init: bytes
    connection: int
    """The minor number of the file system's device, its name below /sys/fs/fuse/connections."""

    def set_read_ahead(self, kib: int) -> None:
        Path(f"/sys/class/bdi/0:{self.connection}/read_ahead_kb").write_text(f"{kib}\n")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@contextmanager
def mounted(path: Path, *, read_only: bool = True) -> Iterator[FuseMount]:
    """A mounted connection whose INIT was read and not answered; unmounted (lazily) at the end."""
    path.mkdir(exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | (MS_RDONLY if read_only else 0)
        _check(_LIBC.mount(b"weightless", os.fsencode(path), b"fuse.weightless", flags, options.encode()), "mount")
        try:
            poller = select.poll()
            poller.register(device, select.POLLIN)
            assert poller.poll(5000), "the kernel sent no INIT"
            init = os.read(device, 1 << 20)
            yield FuseMount(path=path, device=device, init=init, connection=_minor(path))
        finally:
            # Not there any more when the test itself has unmounted it.
            _LIBC.umount2(os.fsencode(path), MNT_DETACH)
    finally:
        os.close(device)


def _minor(path: Path) -> int:
    # From mountinfo: stat would ask the file system, which nobody serves yet.
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            return int(fields[2].split(":")[1])
    raise AssertionError(f"{path} is not mounted")


@contextmanager
def bound(source: Path, target: Path, *, user_namespace: int | None = None) -> Iterator[Path]:
    """A bind mount of `source`; with a user namespace's descriptor it is id-mapped, as for pods with `hostUsers: false`."""
    target.mkdir(exist_ok=True)
    tree = _LIBC.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), ctypes.c_uint(1 | os.O_CLOEXEC))
    _check(min(tree, 0), "open_tree")
    try:
        if user_namespace is not None:
            attributes = struct.pack("<QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
            result = _LIBC.syscall(
                _MOUNT_SETATTR, tree, b"", ctypes.c_uint(_AT_EMPTY_PATH), attributes, ctypes.c_size_t(32)
            )
            _check(result, "mount_setattr")
        moved = _LIBC.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), ctypes.c_uint(4))
        _check(moved, "move_mount")
    finally:
        os.close(tree)
    try:
        yield target
    finally:
        _check(_LIBC.umount2(os.fsencode(target), MNT_DETACH), "umount2")


def unmount(path: Path) -> None:
    """umount(8) without flags: fails when busy."""
    _check(_LIBC.umount2(os.fsencode(path), 0), "umount2")


@contextmanager
def user_namespace(first_uid: int) -> Iterator[int]:
    """The descriptor of a user namespace whose ids 0 to 65535 are those from `first_uid` on."""
    program = (
        "import ctypes, sys; assert ctypes.CDLL(None).unshare(0x10000000) == 0; print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text(f"0 {first_uid} 65536\n")
        namespace = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield namespace
        finally:
            os.close(namespace)
