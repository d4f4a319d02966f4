"""Running a program as an ordinary user who may use /dev/fuse, in a mount namespace of its own: this machine stays as it is.

There, /dev/fuse is a node of mode 0666, and the interpreter can be reached even if it lives in root's home.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

USER = "games"
"""Every Debian has this user; fusermount3 insists on an entry in passwd."""

_ENTER = """
set -e
mknod -m 0666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
if [ -n "$2" ]; then
    mkdir "$1/python"
    mount --bind "$2" "$1/python"
    mount -t tmpfs -o mode=755 none "$3"
    mkdir -p "$2"
    mount --bind "$1/python" "$2"
fi
shift 3
exec setpriv --reuid games --regid games --clear-groups --inh-caps=-all "$@"
"""


def run(directory: Path, program: list[str], *, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `program` as USER; `directory` is for what this needs, and is emptied by the caller."""
    python, closed = _closed_home()
    return subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            _ENTER,
            "sh",
            str(directory),
            python,
            closed,
            *program,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _closed_home() -> tuple[str, str]:
    """The interpreter's installation and the ancestor of it that only root may enter; empty when there is none."""
    prefix = Path(os.path.realpath(sys.base_prefix))
    for parent in reversed(prefix.parents):
        if not parent.stat().st_mode & 0o001:
            return str(prefix), str(parent)
    return "", ""
