"""FUSE messages as bytes, against structures written down by hand from the kernel's header."""

from __future__ import annotations

import errno
import struct

from fuse.worker import requests


def request(opcode: int, unique: int, body: bytes, *, ino: int = 7, pid: int = 99) -> memoryview:
    header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, ino, 1000, 1000, pid, 0, 0)
    return memoryview(bytearray(header + body))


def read_body(offset: int, size: int) -> bytes:
    """fuse_read_in: fh, offset, size, read_flags, lock_owner, flags, padding."""
    return struct.pack("<QQIIQII", 3, offset, size, 0, 0, 0, 0)


def test_read_is_parsed() -> None:
    """Offsets beyond 4 GiB, and the top bit that a resent request has in its unique."""
    message = request(requests.READ, 1 << 63 | 5, read_body(1 << 40, 1 << 20))

    assert requests.opcode(message) == (requests.READ, 1 << 63 | 5)
    assert requests.parse_read(1 << 63 | 5, message) == requests.Read(1 << 63 | 5, 7, 1 << 40, 1 << 20, 99)


def test_only_listings_that_are_too_large_are_changed() -> None:
    """A READDIR asks for at most what libfuse's end of the pair has room for; its offset stays."""
    large = request(requests.READDIRPLUS, 1, read_body(12, 1 << 20))
    small = request(requests.READDIRPLUS, 1, read_body(12, 4096))
    before = bytes(small)
    requests.limit_listing(large)
    requests.limit_listing(small)

    assert bytes(large) == bytes(request(requests.READDIRPLUS, 1, read_body(12, requests.MAX_LISTING_BYTES)))
    assert bytes(small) == before


def test_interrupt_names_its_request() -> None:
    """fuse_interrupt_in is the unique of the request that is interrupted."""
    assert requests.interrupted(request(requests.INTERRUPT, 11, struct.pack("<Q", 10))) == 10


def test_answers_are_what_the_kernel_expects() -> None:
    """fuse_out_header: the whole length, a negative errno, the unique."""
    assert requests.answer(5, 100) == struct.pack("<IiQ", 116, 0, 5)
    assert requests.failure(5, errno.EIO) == struct.pack("<IiQ", 16, -errno.EIO, 5)
    assert requests.invalidation(7) == struct.pack("<IiQQqq", 40, 2, 0, 7, 0, 0)
