"""The directory of sockets: where holders, their keepers and the commands that ask them meet. One a user."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from fuse.disk import unusable
from fuse.errors import Conflict, InvalidConfig

VARIABLE = "WEIGHTLESS_RUN_DIR"


def run_dir() -> Path:
    """The path for this user; nothing is created."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/weightless")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "weightless" if runtime else Path(f"/tmp/weightless-{os.geteuid()}")  # noqa: S108  (checked below)


def ensure(path: Path) -> Path:
    """Creates the directory with mode 0700, or checks that it is the user's own: whoever owns it can speak for us.

    Raises InvalidConfig.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise InvalidConfig(
                    "the run directory is not a directory of this user's", where=str(path), fix=f"set {VARIABLE}"
                ) from None
            if found.st_mode & 0o077:
                path.chmod(0o700)
    except OSError as error:
        raise unusable(error, "the run directory", path, choice=f"set {VARIABLE}") from None
    return path


def lock(path: Path, what: str) -> int:
    """Takes the lock file `path` for this process; the caller owns the descriptor and gives it to `unlock`.

    Raises Conflict, naming `what`, when another process has it.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.lstat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise Conflict(f"{what} runs already", where=str(path), fix="end it first") from None
        except FileNotFoundError:
            pass  # its former owner removed it between our two calls
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def unlock(path: Path, fd: int) -> None:
    """Removes the file and gives the lock up, in this order."""
    path.unlink(missing_ok=True)
    os.close(fd)
