"""Messages between the processes: one JSON object a packet over a Unix SOCK_SEQPACKET socket, file descriptors beside it.

A packet is atomic, so there is no framing; end of file means that the peer is gone. Each protocol is a union of tagged
`msgspec.Struct`s (`tag` is the operation) that lives with its server; here is only the carrying.
A `Channel` may be shared by threads for sending; one thread receives.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec

MAX_MESSAGE_BYTES = 128 * 1024
"""The kernel's default socket buffer (net.core.wmem_default, 208 KiB) holds one such packet with room to spare. Larger
values travel as a sealed memfd."""
MAX_FDS = 8

In = TypeVar("In")
_StructT = TypeVar("_StructT", bound=msgspec.Struct)


class Channel(Generic[In]):
    """A blocking message channel. `incoming` is the union type of the messages that the peer sends."""

    def __init__(self, sock: socket.socket, incoming: object) -> None:
        self.sock = sock
        self._decoder: msgspec.json.Decoder[In] = msgspec.json.Decoder(incoming)
        self._sending = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Sends one message; the descriptors are duplicated to the peer and stay open here.

        Raises OSError (EPIPE, ECONNRESET) when the peer is gone, ValueError when the message is too large.
        """
        packet = encode(message)
        with self._sending:
            socket.send_fds(self.sock, [packet], list(fds))

    def receive(self) -> tuple[In, list[int]] | None:
        """The next message and its descriptors, which the caller owns; None when the peer is gone.

        Raises msgspec.ValidationError (a ValueError) for a message that is not of the union; descriptors are closed then.
        """
        try:
            packet, fds = receive(self.sock, MAX_MESSAGE_BYTES, MAX_FDS)
        except ConnectionResetError:
            return None
        if not packet:
            return None
        try:
            return self._decoder.decode(packet), fds
        except BaseException:
            close_all(fds)
            raise

    def hang_up(self) -> None:
        """Wakes a thread that is blocked in `receive`; safe to call from any thread."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of the right type, both close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode(message: msgspec.Struct) -> bytes:
    packet = msgspec.json.encode(message)
    if len(packet) > MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {len(packet)} bytes exceeds {MAX_MESSAGE_BYTES}")
    return packet


def portions(found: Iterable[_StructT], most_bytes: int = MAX_MESSAGE_BYTES - 4096) -> Iterator[tuple[_StructT, ...]]:
    """What is too much for one message: so many at a time as one has room for. At least one portion, which may be empty."""
    portion: list[_StructT] = []
    taken = 0
    for one in found:
        length = len(msgspec.json.encode(one)) + 1
        if portion and taken + length > most_bytes:
            yield tuple(portion)
            portion, taken = [], 0
        portion.append(one)
        taken += length
    yield tuple(portion)


def receive(sock: socket.socket, most_bytes: int, most_fds: int) -> tuple[bytes, list[int]]:
    """One packet, empty at the end, and the descriptors beside it: close-on-exec, as recv_fds before Python 3.12 is not."""
    space = socket.CMSG_LEN(most_fds * array.array("i").itemsize)
    packet, ancillary, _, _ = sock.recvmsg(most_bytes, space, socket.MSG_CMSG_CLOEXEC)
    return packet, fds_of(ancillary)


def rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data that carries `fds`, for senders that are not blocking sockets (trio)."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def fds_of(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in received ancillary data; the inverse of `rights`."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def sealed_memfd(name: str, content: bytes | memoryview) -> int:
    """A memory file that nobody can change any more: how values larger than a message travel.

    The caller owns the descriptor.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_whole(fd: int, limit_bytes: int) -> bytes:
    """The whole file behind `fd`, wherever its offset stands. Raises ValueError if it is larger than `limit_bytes`."""
    size = os.fstat(fd).st_size
    if size > limit_bytes:
        raise ValueError(f"{size} bytes exceed the limit of {limit_bytes}")
    chunks: list[bytes] = []
    offset = 0
    while offset < size:
        chunk = os.pread(fd, size - offset, offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def listen(path: Path, *, backlog: int = 64) -> socket.socket:
    """A listening socket at `path`, whatever its length (sun_path holds 108 bytes, cache directories may be deeper).

    Raises OSError (EADDRINUSE) when the path exists.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(path) as short:
            sock.bind(short)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: Path) -> socket.socket:
    """A connected socket. Raises FileNotFoundError or ConnectionRefusedError when nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(path) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _short(path: Path) -> Iterator[str]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def peer_uid(sock: socket.socket) -> int:
    """The user of the process at the other end (SO_PEERCRED, unix(7))."""
    return peer_credentials(sock)[1]


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process id, user and group of the peer at the time it connected."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid
