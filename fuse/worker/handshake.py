"""FUSE_INIT as bytes: what the kernel offers, what goes back, and what a successor is shown.

The first message of a connection is answered once, but every worker that serves the connection has to make libfuse believe
that it was the one. So the INIT message is kept and replayed, and the reply passes through here, where it gets what libfuse
does not offer (include/uapi/linux/fuse.h: fuse_in_header, fuse_init_in, fuse_out_header, fuse_init_out). Pure.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from fuse.errors import MountFailed

INIT: Final = 26
INIT_BYTES: Final = 104
"""fuse_in_header (40) and fuse_init_in (64) since protocol 7.36."""
EXT: Final = 1 << 30
"""FUSE_INIT_EXT: `flags2` means something."""
ALLOW_IDMAP: Final = 1 << 8
"""FUSE_ALLOW_IDMAP (1 << 40) as it stands in `flags2`: without it mount_setattr(MOUNT_ATTR_IDMAP) is EINVAL, and pods with a user
namespace of their own cannot start."""
MAX_BACKGROUND: Final = 64
CONGESTION: Final = 48
MAX_IO_BYTES: Final = 1 << 20
"""The largest READ, and the largest WRITE, for which the kernel wants room in every buffer that takes a request. libfuse says 256
pages, or what the system's limit is: 16 MiB where a page has 64 KiB."""
MAX_READ_AHEAD_BYTES: Final = 1 << 30
"""The kernel takes the smaller of this and the mount's read_ahead_kb, once. libfuse would repeat the 128 KiB that were offered,
and undo what the privileged side has set by then."""
RESEND: Final = struct.pack("<IiQ", 16, 7, 0)
"""FUSE_NOTIFY_RESEND: the kernel (6.9 and newer) queues again what was read and never answered."""

_IN_HEADER = struct.Struct("<IIQ")
_IN_FLAGS: Final = 40 + 12
_IN_FLAGS2: Final = 40 + 16
_OUT_HEADER = struct.Struct("<IiQ")
_OUT_FLAGS: Final = 16 + 12
_OUT_READ_AHEAD: Final = 16 + 8
_OUT_BACKGROUND: Final = 16 + 16
_OUT_MAX_WRITE: Final = 16 + 20
_OUT_MAX_PAGES: Final = 16 + 28
_OUT_FLAGS2: Final = 16 + 32
_WORD = struct.Struct("<I")
_HALF = struct.Struct("<H")
_LIMITS = struct.Struct("<HH")


def check(init: bytes) -> None:
    """Raises MountFailed when `init` is not the first message of a connection that is new enough."""
    if len(init) < INIT_BYTES or _IN_HEADER.unpack_from(init)[:2] != (len(init), INIT):
        raise MountFailed(f"the kernel's first message ({len(init)} bytes) is no FUSE_INIT of protocol 7.36 or newer")


def masked(init: bytes, first_reply: bytes) -> bytes:
    """`init` as a successor may see it: nothing offered that the first reply did not accept.

    A newer libfuse would otherwise use features that this connection was never told of.
    """
    if not first_reply:
        return init
    message = bytearray(init)
    for place, accepted in ((_IN_FLAGS, _OUT_FLAGS), (_IN_FLAGS2, _OUT_FLAGS2)):
        offered = _WORD.unpack_from(init, place)[0]
        _WORD.pack_into(message, place, offered & _WORD.unpack_from(first_reply, accepted)[0])
    return bytes(message)


def patched(init: bytes, reply: bytes, *, page_bytes: int = mmap.PAGESIZE) -> bytes:
    """libfuse's `reply` with our limits, and with id-mapped mounts allowed where the kernel offers that.

    `page_bytes` is the size of the kernel's pages. Raises MountFailed when libfuse refused.
    """
    if len(reply) < _OUT_FLAGS2 + 4 or _OUT_HEADER.unpack_from(reply)[1] != 0:
        raise MountFailed("libfuse did not accept the kernel's FUSE_INIT")
    message = bytearray(reply)
    _WORD.pack_into(message, _OUT_READ_AHEAD, MAX_READ_AHEAD_BYTES)
    _LIMITS.pack_into(message, _OUT_BACKGROUND, MAX_BACKGROUND, CONGESTION)
    for word, place, most in (
        (_WORD, _OUT_MAX_WRITE, MAX_IO_BYTES),
        (_HALF, _OUT_MAX_PAGES, MAX_IO_BYTES // page_bytes),
    ):
        word.pack_into(message, place, min(most, word.unpack_from(reply, place)[0]))
    if _WORD.unpack_from(init, _IN_FLAGS)[0] & EXT and _WORD.unpack_from(init, _IN_FLAGS2)[0] & ALLOW_IDMAP:
        _WORD.pack_into(message, _OUT_FLAGS, _WORD.unpack_from(reply, _OUT_FLAGS)[0] | EXT)
        _WORD.pack_into(message, _OUT_FLAGS2, _WORD.unpack_from(reply, _OUT_FLAGS2)[0] | ALLOW_IDMAP)
    return bytes(message)
