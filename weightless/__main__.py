"""The `weightless` program."""

from __future__ import annotations

import os
import sys


def main() -> None:
    _fill_streams()
    from weightless.app import app

    app()


def _fill_streams() -> None:
    """Gives closed standard streams /dev/null: what is opened next must not take their numbers, nor a message fail."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    main()
