"""The device's threads where the kernel cannot be made to show the case; a SOCK_SEQPACKET pair is the device."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from fuse import wire
from fuse.worker import requests
from fuse.worker.connection import Connection
from fuse.worker.requests import Read
from tests.fuse.worker.test_requests import read_body, request
from tests.support.waiting import until

LOOKUP = 1
LIMIT_S = 10.0


class Bytes:
    """Answers READs of one byte at once, fails on inode 13, and has to wait for all others."""

    def read(self, ino: int, offset: int, size: int) -> memoryview | None:
        if ino == 13:
            raise RuntimeError("a mistake")
        return memoryview(b"x") if size == 1 else None

    def done(self) -> None:
        pass


class Ends:
    """A connection, the kernel's end of its device, and libfuse's end of its pair."""

    def __init__(self) -> None:
        self.kernel, self.device = wire.pair()
        self._peer, self.libfuse = wire.pair()
        for end in (self.kernel, self.libfuse):
            end.settimeout(LIMIT_S)
        self.later: list[Read] = []
        self.interrupted: list[int] = []
        self.connection = Connection(
            self.device.fileno(),
            self._peer,
            servers=Bytes,
            later=self.later.append,
            interrupted=self.interrupted.append,
        )
        self.connection.start()

    def send(self, message: memoryview) -> None:
        self.kernel.send(message)

    def answer(self) -> tuple[int, int, bytes]:
        """Unique, errno and content of the next answer."""
        content = self.kernel.recv(1 << 20)
        length, number, unique = struct.unpack_from("<IiQ", content)
        assert length == len(content)
        return unique, -number, content[16:]

    def close(self) -> None:
        for end in (self.kernel, self.libfuse):
            end.shutdown(socket.SHUT_RDWR)
            end.close()
        # A thread that still reads would take the requests of the next device of this number.
        for thread, _ in self.connection._threads:
            thread.join(LIMIT_S)
        self.device.close()
        self._peer.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_reads_are_answered_here_and_the_rest_goes_to_libfuse(ends: Ends) -> None:
    """A READ that has its bytes, one that has to wait, and a LOOKUP with its answer."""
    ends.send(request(requests.READ, 1, read_body(0, 1)))
    assert ends.answer() == (1, 0, b"x")
    ends.send(request(requests.READ, 2, read_body(4096, 100)))
    until(lambda: ends.later == [Read(2, 7, 4096, 100, 99)], "the READ that waits")
    lookup = request(LOOKUP, 3, b"name\0")
    ends.send(lookup)
    assert ends.libfuse.recv(4096) == bytes(lookup)
    ends.libfuse.send(requests.answer(3, 5) + b"entry")
    assert ends.answer() == (3, 0, b"entry")


def test_forgets_are_answered_by_nobody(ends: Ends) -> None:
    """The kernel waits for no answer, so libfuse need not see them."""
    ends.send(request(requests.FORGET, 1, bytes(8)))
    ends.send(request(requests.BATCH_FORGET, 2, bytes(24)))
    lookup = request(LOOKUP, 3, b"name\0")
    ends.send(lookup)

    assert ends.libfuse.recv(4096) == bytes(lookup)


def test_no_more_is_passed_on_than_libfuse_has_room_to_answer(ends: Ends) -> None:
    """libfuse writes with the interpreter lock held: an answer that did not fit would stop this process for good."""
    for unique in range(100):
        ends.send(request(LOOKUP, unique, b"name\0"))
    seen = []
    ends.libfuse.setblocking(False)

    def all_seen() -> bool:
        try:
            while True:
                seen.append(requests.opcode(memoryview(ends.libfuse.recv(4096)))[1])
        except BlockingIOError:
            pass
        assert len(seen) <= answered + 4
        return len(seen) == min(100, answered + 4)

    answered = 0
    until(all_seen, "the first four")
    while answered < 100:
        ends.libfuse.send(
            requests.answer(seen[answered], requests.MAX_LISTING_BYTES) + bytes(requests.MAX_LISTING_BYTES)
        )
        answered += 1
        ends.answer()
        until(all_seen, "the following ones")
    assert sorted(seen) == list(range(100))


def test_mistake_in_one_request_is_its_own(ends: Ends) -> None:
    """It is EIO, and the thread goes on."""
    for _ in range(20):
        ends.send(request(requests.READ, 1, read_body(0, 1), ino=13))
        assert ends.answer() == (1, errno.EIO, b"")
    ends.send(request(requests.READ, 2, read_body(0, 1)))
    assert ends.answer() == (2, 0, b"x")


def test_interrupts_are_told_and_not_answered(ends: Ends) -> None:
    """An answer of EAGAIN would bring back at once, again and again, one whose request nobody here will ever answer."""
    ends.send(request(requests.INTERRUPT, 11, struct.pack("<Q", 10)))
    until(lambda: ends.interrupted == [10], "it")
    ends.send(request(requests.READ, 12, read_body(0, 1)))
    assert ends.answer() == (12, 0, b"x")


def test_device_that_a_late_predecessor_left_without_waiting_waits_again(ends: Ends) -> None:
    """It shares the open file with us; our threads would ask without end."""
    os.set_blocking(ends.device.fileno(), False)
    ends.send(request(requests.READ, 1, read_body(0, 1)))
    assert ends.answer() == (1, 0, b"x")
    until(lambda: os.get_blocking(ends.device.fileno()), "the device to wait")


def test_request_that_comes_after_leaving_is_left_to_a_successor(ends: Ends) -> None:
    """It is not even taken: a kernel that never sends anything again loses nothing."""
    ends.connection.leave()
    message = request(requests.READ, 1, read_body(0, 1))
    ends.send(message)
    assert ends.device.recv(4096) == bytes(message)
    until(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("requests-")],
        "no thread left",
    )


def test_answer_that_nobody_wants_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """ENOENT: its reader was killed; ENODEV: the mount is gone."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    connection = Connection(write_end, socket.socket(), servers=Bytes, later=lambda _: None, interrupted=lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        for number in (errno.ENOENT, errno.ENODEV):

            def refuse(*_: object, number: int = number) -> int:
                raise OSError(number, os.strerror(number))

            patch.setattr(os, "writev", refuse)
            connection.answer(1, b"content")
    connection._peer.close()
    os.close(write_end)
    assert capsys.readouterr().err == ""
