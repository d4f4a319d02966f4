"""The session's loop where the kernel cannot be made to show the case: a request that vanishes before it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyfuse3
import pytest
import trio

from fuse.worker import handshake
from fuse.worker.session import Session
from tests.fuse.worker.test_handshake import init


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A pipe in place of the device: what is written can be read back. libfuse is left out."""
    monkeypatch.setattr(pyfuse3, "init", lambda *_: None)
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def loop_ending_with(errors: list[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(min_tasks: int, max_tasks: int) -> None:
        await trio.lowlevel.checkpoint()
        if errors:
            raise ExceptionGroup("Exceptions from Trio nursery", [errors.pop(0)])

    monkeypatch.setattr(pyfuse3, "main", main)


def run(session: Session) -> None:
    async def main() -> None:
        await session._main(trio.CancelScope())

    try:
        trio.run(main)
    finally:
        session._ours.close()
        os.close(session._fd)


def test_vanished_request_does_not_end_the_session(device: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is begun again each time, and the kernel asked for what the cancelled tasks had read."""
    loop_ending_with([BlockingIOError(), BlockingIOError()], monkeypatch)
    run(Session(pyfuse3.Operations(), device[1], init()))

    assert os.read(device[0], 100) == 2 * handshake.RESEND


def test_other_failures_of_the_device_end_the_session(device: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not repeated for ever."""
    loop_ending_with([OSError(5, "broken")], monkeypatch)
    with pytest.raises(ExceptionGroup):
        run(Session(pyfuse3.Operations(), device[1], init()))
