"""Runs a program that gives credentials: docker's helpers, kubelet's providers.

What is asked goes to its standard input and nowhere else, so no argument and no environment holds a secret. It has a time limit,
and its answer a size limit. What it says on standard error is not kept, since that may be a secret. When it has answered,
whatever it left of its process group is killed. Blocking; used from threads.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from fuse.errors import Cancelled

MAX_ANSWER_BYTES: Final = 1024 * 1024
_LOOK_S: Final = 0.2
_PIECE: Final = 64 * 1024


class ProgramFailed(Exception):
    """How it failed, in words that hold nothing of what it said."""

    def __init__(self, how: str, *, temporary: bool = False) -> None:
        super().__init__(how)
        self.how = how
        self.temporary = temporary


def run(
    argv: Sequence[str],
    question: bytes,
    *,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
    cancel: threading.Event | None = None,
) -> tuple[int, bytes]:
    """Its exit code and what it wrote to standard output. `user`: whom it runs as (and whose group), if we are root.

    Raises ProgramFailed when it cannot be started, takes too long or says too much, and Cancelled.
    """
    identity = None if user is None or os.geteuid() != 0 else user
    asked = os.memfd_create("question", os.MFD_CLOEXEC)
    try:
        _write_all(asked, question)
        os.lseek(asked, 0, os.SEEK_SET)
        process = subprocess.Popen(
            list(argv),
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
            user=identity,
            group=identity,
            extra_groups=None if identity is None else (),
            umask=0o077,
        )
    except OSError as error:
        whose = "" if identity is None else f" as user {identity}"
        raise ProgramFailed(f"cannot be started{whose}: {error.strerror}") from None
    finally:
        os.close(asked)
    with process:
        try:
            answer = _answer(process, process.stdout.fileno() if process.stdout else -1, limit_s, cancel)
        finally:
            # Its whole session, and before it is waited for, as its number may be given away then: a program may be a script
            # whose children go on.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, answer


def _answer(process: subprocess.Popen[bytes], pipe: int, limit_s: float, cancel: threading.Event | None) -> bytes:
    """What it writes until it ends; a child that keeps the pipe open is not waited for. The caller reaps it."""
    os.set_blocking(pipe, False)
    deadline = time.monotonic() + limit_s
    content = bytearray()
    ended = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        poller.register(pipe, select.POLLIN)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ProgramFailed(f"did not answer within {limit_s:g} s", temporary=True)
            if cancel is not None and cancel.is_set():
                raise Cancelled("given up while credentials were being fetched")
            events = dict(poller.poll(min(left_s, _LOOK_S) * 1000))
            if pipe in events and _drain(pipe, content):
                poller.unregister(pipe)
            if ended in events:
                _drain(pipe, content)
                return bytes(content)
    finally:
        os.close(ended)


def _drain(pipe: int, content: bytearray) -> bool:
    """Reads what there is; whether that was the end."""
    while True:
        try:
            piece = os.read(pipe, _PIECE)
        except BlockingIOError:
            return False
        content += piece
        if not piece:
            return True
        if len(content) > MAX_ANSWER_BYTES:
            raise ProgramFailed(f"answered with more than {MAX_ANSWER_BYTES >> 20} MiB")


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
