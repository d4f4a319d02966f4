"""FUSE requests and answers as bytes: the few that are looked into here (include/uapi/linux/fuse.h). Pure.

READ is answered without libfuse; INTERRUPT and the two FORGETs never reach it; everything else passes through untouched, but for
the size that a READDIR may have.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

FORGET: Final = 2
READ: Final = 15
READDIR: Final = 28
INTERRUPT: Final = 36
BATCH_FORGET: Final = 42
READDIRPLUS: Final = 44

UNANSWERED: Final = frozenset({FORGET, BATCH_FORGET})
"""The kernel waits for no answer, and we count no lookups: the tree lives as long as the mount."""
LISTINGS: Final = frozenset({READDIR, READDIRPLUS})

MAX_LISTING_BYTES: Final = 32 * 1024
"""The largest answer to a READDIR; the kernel asks again for the rest."""

_HEAD = struct.Struct("<IIQ")
"""fuse_in_header: len, opcode, unique."""
_READ = struct.Struct("<QIIIHHQQI")
"""The rest of fuse_in_header (nodeid, uid, gid, pid, total_extlen, padding), and of fuse_read_in fh, offset, size."""
_SIZE_AT: Final = 40 + 16
_TARGET = struct.Struct("<Q")
_SIZE = struct.Struct("<I")
_ANSWER = struct.Struct("<IiQ")
_INVALIDATE = struct.Struct("<IiQQqq")
_NOTIFY_INVAL_INODE: Final = 2
ANSWER_BYTES: Final = _ANSWER.size


class Read(NamedTuple):
    """One READ. `unique` names it for its answer; `pid` is the thread that waits, in the mount's PID namespace, or 0."""

    unique: int
    ino: int
    offset: int
    size: int
    pid: int


def opcode(request: memoryview) -> tuple[int, int]:
    """Opcode and unique."""
    _, code, unique = _HEAD.unpack_from(request)
    return code, unique


def parse_read(unique: int, request: memoryview) -> Read:
    ino, _uid, _gid, pid, _extensions, _padding, _handle, offset, size = _READ.unpack_from(request, _HEAD.size)
    return Read(unique, ino, offset, size, pid)


def interrupted(request: memoryview) -> int:
    """Which request an INTERRUPT is about."""
    return int(_TARGET.unpack_from(request, 40)[0])


def limit_listing(request: memoryview) -> None:
    """Makes a READDIR ask for no more than `MAX_LISTING_BYTES`. `request` must be writable."""
    if _SIZE.unpack_from(request, _SIZE_AT)[0] > MAX_LISTING_BYTES:
        _SIZE.pack_into(request, _SIZE_AT, MAX_LISTING_BYTES)


def answer(unique: int, length: int) -> bytes:
    """What precedes `length` bytes of an answer."""
    return _ANSWER.pack(ANSWER_BYTES + length, 0, unique)


def failure(unique: int, errno: int) -> bytes:
    return _ANSWER.pack(ANSWER_BYTES, -errno, unique)


def invalidation(ino: int) -> bytes:
    """The notice that makes the kernel forget all pages of a file."""
    return _INVALIDATE.pack(_INVALIDATE.size, _NOTIFY_INVAL_INODE, 0, ino, 0, 0)
