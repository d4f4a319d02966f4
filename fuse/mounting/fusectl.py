"""The kernel's own account of FUSE connections: how many requests each has outstanding, and the switch that ends one.

It is a small file system, fusectl, usually mounted at /sys/fs/fuse/connections; in a container or on a bare machine it often is
not. Then root has one of its own, by the newer mount calls: a mount without a place in the tree, which nobody else sees. Where
neither can be had, `waiting` knows nothing, and callers do without. Every call returns at once, whatever the state of a mount.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

_PLACE: Final = Path("/sys/fs/fuse/connections")
_MAGIC: Final = 0x65735543
"""FUSE_CTL_SUPER_MAGIC: the directory is there, and empty, also where nothing is mounted on it."""
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CMD_CREATE = 1, 6

_log = structlog.get_logger()
_libc = ctypes.CDLL(None, use_errno=True)


class Connections:
    """FUSE connections by the minor number of their device. Thread-safe until it is closed."""

    def __init__(self) -> None:
        self._directory = _directory()

    @property
    def usable(self) -> bool:
        return self._directory >= 0

    def waiting(self, minor: int) -> int | None:
        """Requests that wait for the worker or are being answered; None when that cannot be known."""
        if self._directory < 0:
            return None
        try:
            fd = os.open(f"{minor}/waiting", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                return int(os.read(fd, 32))
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return None

    def abort(self, minor: int) -> bool:
        """Ends a connection: whoever waits for it, or uses it later, gets ENOTCONN or ECONNABORTED. Whether it was done."""
        if self._directory < 0:
            return False
        try:
            fd = os.open(f"{minor}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.write(fd, b"1")
            finally:
                os.close(fd)
        except OSError as error:
            _log.warning("connection_not_aborted", connection=minor, error=error.strerror)
            return False
        return True

    def close(self) -> None:
        directory, self._directory = self._directory, -1
        if directory >= 0:
            os.close(directory)


def _directory() -> int:
    """A descriptor of a fusectl, or -1."""
    with suppress(OSError):
        fd = os.open(_PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _is_fusectl(fd):
            return fd
        os.close(fd)
    try:
        return _private()
    except OSError as error:
        _log.debug("fusectl_not_there", error=error.strerror)
        return -1


def _private() -> int:
    context = _call(_FSOPEN, b"fusectl", ctypes.c_uint(_CLOEXEC))
    try:
        _call(_FSCONFIG, context, ctypes.c_uint(_CMD_CREATE), None, None, 0)
        mount = _call(_FSMOUNT, context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)
    try:
        # What fsmount(2) gives is an O_PATH descriptor; the mount lives as long as anything is open in it.
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _is_fusectl(fd: int) -> bool:
    # os.statvfs leaves f_type out; statfs(2) has it first.
    buffer = (ctypes.c_long * 32)()
    return _libc.fstatfs(fd, buffer) == 0 and buffer[0] == _MAGIC
