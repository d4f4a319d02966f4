"""A bind of a mount with its ids mapped, as a container runtime makes it for `hostUsers: false` (mount_setattr(2))."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.waiting import until

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x00100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@contextmanager
def id_mapped(source: Path, target: Path, *, first_id: int = 100_000) -> Iterator[Path]:
    """`target` shows `source` with ids shifted by `first_id`. Needs root. Raises OSError."""
    with _user_namespace(first_id) as namespace:
        tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
        try:
            attributes = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=namespace)
            size = ctypes.c_size_t(ctypes.sizeof(attributes))
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
            _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def _user_namespace(first_id: int) -> Iterator[int]:
    """A descriptor of a user namespace with 65536 ids. Its process has done its part once the descriptor is open."""
    process = subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    own = Path("/proc/self/ns/user").readlink()
    path = Path("/proc", str(process.pid))
    try:
        until(lambda: (path / "ns/user").readlink() != own, "a user namespace")
        for name in ("uid_map", "gid_map"):
            (path / name).write_text(f"0 {first_id} 65536")
        fd = os.open(path / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    try:
        yield fd
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
