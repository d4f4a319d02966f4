"""READs that wait, where the kernel cannot be made to show the order; a SOCK_SEQPACKET pair is the device."""

from __future__ import annotations

import errno
import os
import struct

import pyfuse3
import pytest
import trio

from fuse import wire
from fuse.worker import session as sessions
from fuse.worker.connection import ReadServer
from fuse.worker.requests import Read
from fuse.worker.session import Session
from tests.fuse.worker.test_handshake import init

READ = Read(unique=5, ino=7, offset=0, size=100, pid=99)
LIMIT_S = 10.0


class Never:
    """Bytes that do not come."""

    def server(self) -> ReadServer:
        raise NotImplementedError

    async def read_later(self, *_: object) -> None:
        await trio.sleep_forever()


def test_reader_that_was_killed_before_its_read_began_to_wait_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has the READ in its hands while another takes the INTERRUPT, which the kernel sends once."""
    monkeypatch.setattr(pyfuse3, "init", lambda _operations, device, _options: os.close(int(device.split("/")[-1])))
    monkeypatch.setattr(sessions, "_is_killed", lambda thread: thread == READ.pid)
    kernel, device = wire.pair()
    session = Session(None, Never(), device.fileno(), init())

    async def begin() -> None:
        session._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            session._nursery = nursery
            session._interrupted(READ.unique)
            session._later(READ)
            with trio.fail_after(LIMIT_S):
                await trio.lowlevel.wait_readable(kernel)
            nursery.cancel_scope.cancel()

    trio.run(begin)
    assert struct.unpack("<IiQ", kernel.recv(4096)) == (16, -errno.EINTR, READ.unique)
    for end in (kernel, device, session._ours):
        end.close()
