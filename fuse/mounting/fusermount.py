"""Mounting without root: fusermount3, which is setuid, mounts and hands the device over a socket (`_FUSE_COMMFD`).

The device comes with its FUSE_INIT still to be read, as from `device.mount`. Nothing here looks into a mount.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

from fuse import wire
from fuse.errors import Missing, MountFailed
from fuse.mounting import device

# allow_other is left to those who enabled it in /etc/fuse.conf; without it only the user reads the mount, as with any fusermount.
_OPTIONS: Final = "ro,nosuid,nodev,noexec,noatime,default_permissions,fsname=weightless,subtype=weightless"
_LIMIT_S: Final = 20.0


def mount(mountpoint: Path, label: str = "") -> int:
    """Mounts at `mountpoint` and returns the device, which the caller owns. `label` is empty, for fusermount3 takes none."""
    if label:
        fix = "mount as root, or leave --selinux-context (selinux-context in weightless.toml) away"
        raise Missing("only root can mount with an SELinux context", where=label, fix=fix)
    program = _program()
    # fusermount3 speaks over a stream socket, and passes exactly one descriptor.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    fds: list[int] = []
    with ours:
        with theirs:
            process = subprocess.Popen(
                [program, "-o", _OPTIONS, "--", os.fspath(mountpoint)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        ours.settimeout(_LIMIT_S)
        try:
            _, fds = wire.receive(ours, 1, 1)
            message = process.communicate(timeout=_LIMIT_S)[1]
        except (TimeoutError, subprocess.TimeoutExpired):
            process.kill()
            message = process.communicate()[1] + b"it did not end in time"
        if process.returncode == 0 and fds:
            return fds[0]
    if fds:  # mounted, and failed afterwards: take it back, then let the connection die with its descriptor
        subprocess.run([program, "-u", "-z", "--", os.fspath(mountpoint)], check=False, capture_output=True, cwd="/")
    wire.close_all(fds)
    raise MountFailed(
        f"fusermount3: {_said(message)}",
        where=str(mountpoint),
        fix="the directory must be your own, and /dev/fuse of mode 0666" if b"ermission" in message else "",
    )


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Raises Conflict when the mount is in use; a mount that is not there is no error."""
    result = subprocess.run(
        [_program(), "-u", *(["-z"] if lazy else []), "--", os.fspath(mountpoint)],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        cwd="/",
        timeout=_LIMIT_S,
        check=False,
    )
    if result.returncode == 0 or b"not found" in result.stderr or b"Invalid argument" in result.stderr:
        return
    if b"busy" in result.stderr:
        raise device.busy(mountpoint)
    raise MountFailed(f"fusermount3: {_said(result.stderr)}", where=str(mountpoint))


def _program() -> str:
    path = shutil.which("fusermount3")
    if path is None:
        raise Missing(
            "it is not installed",
            where="fusermount3",
            fix="install the package fuse3, or mount as root: without it only root may",
        )
    return path


def _said(message: bytes) -> str:
    return message.decode(errors="replace").strip().removeprefix("fusermount3:").strip()[-500:] or "it failed silently"
