"""`weightless keeper`: becomes the keeper, a program of one file and the standard library (`fuse/keeper.py`)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fuse import keeper
from fuse.errors import InvalidConfig
from weightless import wiring
from weightless.options import Settings


def run(settings: Settings, socket: str) -> NoReturn:
    """Does not return: this process is exchanged for one of a tenth of its size. Raises InvalidRequest, InvalidConfig."""
    del settings
    path = wiring.socket_path(socket, "--socket")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(
            f"the directory of the socket cannot be made: {error.strerror}", where=str(path.parent), fix="see --socket"
        ) from error
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(keeper.__file__), os.fspath(path), "--stay"])  # noqa: S606  (no shell is wanted)
