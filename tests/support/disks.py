"""Real file systems that become full, read-only or fail: a tmpfs with a limit, and ext4 in a file. They need root."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXT4_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2


@contextmanager
def tmpfs(path: Path, mib: int) -> Iterator[None]:
    """A file system of so many MiB at `path`, which is made."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class Ext4:
    """An ext4 file system in a file, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make_read_only(self) -> None:
        """As after an error with `errors=remount-ro`: reads go on, writes are EROFS, files that are open notwithstanding."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.path)], check=False, capture_output=True)
        subprocess.run(
            ["mount", "-o", "remount,errors=remount-ro,abort", str(self.path)], check=False, capture_output=True
        )

    def fail(self) -> None:
        """From now on everything is EIO, as if the disk had been pulled."""
        # What is clean must be asked of the disk again, also by a store into a map.
        subprocess.run(["sync", "--file-system", str(self.path)], check=True)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)


@contextmanager
def ext4(path: Path, mib: int) -> Iterator[Ext4]:
    """The image lies beside `path`, which is made, and is removed with it."""
    path.mkdir(exist_ok=True)
    image = path.with_name(f"{path.name}.img")
    with image.open("wb") as file:
        file.truncate(mib * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(path)], check=True)
    path.chmod(0o700)
    try:
        yield Ext4(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        image.unlink()
