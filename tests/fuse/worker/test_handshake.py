"""FUSE_INIT as bytes: what is patched, what is masked, what is refused."""

from __future__ import annotations

import struct

import pytest

from fuse.errors import MountFailed
from fuse.worker import handshake

EXT = 1 << 30


def init(flags: int = EXT | 0xFF, flags2: int = 1 << 8) -> bytes:
    body = struct.pack("<IIIII44x", 7, 45, 131072, flags, flags2)
    return struct.pack("<IIQQIIII", 104, 26, 2, 0, 0, 0, 0, 0) + body


def reply(flags: int = 0x3F, flags2: int = 0, error: int = 0, *, max_write: int = 1 << 20) -> bytes:
    body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 131072, flags, 0, 0, max_write, 1, 256, 0, flags2)
    return struct.pack("<IiQ", 16 + len(body), error, 2) + body


def fields(message: bytes) -> tuple[int, ...]:
    return struct.unpack_from("<IIIIHHIIHHI", message, 16)


def test_reply_allows_id_mapped_mounts_where_the_kernel_offers_them() -> None:
    """FUSE_INIT_EXT and FUSE_ALLOW_IDMAP are added, the rest of the flags stays."""
    patched = fields(handshake.patched(init(), reply()))

    assert (0x3F | EXT, 1 << 8) == (patched[3], patched[10])


@pytest.mark.parametrize("offered", [(0xFF, 0), (EXT, 0), (0xFF, 1 << 8)])
def test_reply_claims_nothing_that_an_old_kernel_does_not_offer(offered: tuple[int, int]) -> None:
    """A flag of the reply that was not offered would be an error to the kernel."""
    patched = fields(handshake.patched(init(*offered), reply()))

    assert (0x3F, 0) == (patched[3], patched[10])


def test_reply_sets_the_limits() -> None:
    """max_background, congestion threshold, and a read-ahead that the mount's own setting decides."""
    patched = fields(handshake.patched(init(), reply()))

    assert (64, 48) == patched[4:6]
    assert patched[2] == handshake.MAX_READ_AHEAD_BYTES


@pytest.mark.parametrize(("page", "pages"), [(4096, 256), (16384, 64), (65536, 16)])
def test_reply_allows_no_request_that_our_buffers_do_not_hold(page: int, pages: int) -> None:
    """libfuse counts in pages; the kernel gives nothing to whoever has less room than its largest WRITE."""
    patched = fields(handshake.patched(init(), reply(max_write=256 * page), page_bytes=page))

    assert (1 << 20, pages) == (patched[6], patched[8])


def test_refusal_of_libfuse_is_an_error() -> None:
    """A reply with an error ends the start, with words."""
    with pytest.raises(MountFailed):
        handshake.patched(init(), reply(error=-71))


def test_successor_sees_only_what_the_first_reply_accepted() -> None:
    """The features of a connection are those of its first answer."""
    first = handshake.patched(init(), reply(flags=0x15))
    masked = handshake.masked(init(flags=EXT | 0xFFFF, flags2=0xFFFF), first)

    assert struct.unpack_from("<II", masked, 52) == (EXT | 0x15, 1 << 8)
    assert masked[:52] == init()[:52]
    assert handshake.masked(init(), b"") == init()


@pytest.mark.parametrize("message", [b"", init()[:80], init().replace(b"\x1a", b"\x01", 1), init() + b"\0"])
def test_anything_but_init_is_refused(message: bytes) -> None:
    """A device whose first message was read by somebody else is not begun."""
    with pytest.raises(MountFailed):
        handshake.check(message)
