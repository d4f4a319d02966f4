"""Programs that run for as long as a cluster does, each with a log of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import until


@contextmanager
def program(
    arguments: Sequence[str | Path], *, logs: Path, ready: Callable[[], bool], within_s: float = 60
) -> Iterator[None]:
    """Runs a program until the end of the block, which begins when `ready` says so; shows its log if it ends before."""
    name = Path(arguments[0]).name
    path = logs / f"{name}.log"
    with path.open("wb") as log:
        # A session of its own: Ctrl-C is for the tests, which end it in its turn.
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Programs of one module find each other (containerd its shim) before others of the same name.
            env={**os.environ, "HOME": "/root", "PATH": f"{Path(arguments[0]).parent}:{os.environ['PATH']}"},
        )

    def answers() -> bool:
        assert process.poll() is None, f"{name} ended with {process.returncode}:\n{_tail(path)}"
        return ready()

    try:
        until(answers, f"{name} is ready (see {path})", within_s=within_s)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:])
