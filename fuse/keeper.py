"""The keeper: holds descriptors for a process that may die, and gives them back to its successor.

A FUSE connection lives as long as somebody holds its device. The keeper is that somebody: it holds, under a name for each mount,
an opaque list of descriptors, and knows nothing of what they are. It needs no upgrade, hence its rule: the standard library only.

One JSON object a packet over a Unix SOCK_SEQPACKET socket; each request has one answer, in order. Only the keeper's own user may
speak, and root.

    {"op": "hello"}                        -> {"ok": true, "pid": 4711, "version": 1}
    {"op": "keep", "name": N} + 1..8 fds   -> {"ok": true}             replaces what N held
    {"op": "take", "name": N}              -> {"ok": true} + the fds   which it goes on holding
    {"op": "drop", "name": N}              -> {"ok": true}             also when N is not held
    {"op": "list"}                         -> {"ok": true, "names": [N, …]}
    anything else                          -> {"ok": false, "error": "…"}

It ends by itself once it holds nothing and nobody is connected. One thread; nothing blocks but the wait for the next message.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys

VERSION = 1
MAX_FDS = 8
MAX_NAMES = 4096
MAX_NAME = 64
_MAX_PACKET = 1024
_FIRST_CLIENT_S = 30.0


def bind(path: str) -> tuple[socket.socket, int] | None:
    """The listening socket at `path` and the lock that says it is ours; None when a keeper lives there already."""
    lock = _lock(f"{path}.lock")
    if lock is None:
        return None
    directory, name = os.path.split(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108  (nobody held the lock: it is left over; pathlib would cost 1 MB)
        # sun_path has room for 108 bytes; the directory's descriptor makes any path short.
        parent = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{parent}/{name}")
        finally:
            os.close(parent)
        os.chmod(path, 0o600)  # noqa: PTH101
        listener.listen(64)
    except BaseException:
        listener.close()
        os.close(lock)
        raise
    return listener, lock


def _lock(path: str) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass  # a keeper that ended removed it between our two calls
        os.close(fd)


class Keeper:
    """Answers clients until there is neither a client nor anything to hold."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._held: dict[str, list[int]] = {}
        self._clients: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        limit_s: float | None = _FIRST_CLIENT_S
        while True:
            events = self._selector.select(limit_s)
            if not events and limit_s is not None:
                return
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
            limit_s = None
            if not self._held and not self._clients:
                limit_s = 0  # whoever is in the queue already is still let in

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            client.close()
            return
        client.setblocking(False)
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ)

    def _serve(self, client: socket.socket) -> None:
        try:
            packet, fds, flags, _ = socket.recv_fds(client, _MAX_PACKET, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            if not packet:
                raise ConnectionResetError
            answer, given = self._answer(
                packet, list(fds), truncated=bool(flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC))
            )
            socket.send_fds(client, [json.dumps(answer).encode()], given)
        except BlockingIOError:
            # It sends and does not read: the answer has no room. Its next message finds it gone.
            self._forget(client)
        except OSError:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        self._clients.discard(client)
        client.close()

    def _answer(self, packet: bytes, fds: list[int], *, truncated: bool) -> tuple[dict[str, object], list[int]]:
        try:
            message = json.loads(packet)
            op, name = message["op"], message.get("name", "")
        except (ValueError, KeyError, TypeError, AttributeError):
            op, name = None, ""
        problem = "unknown operation or name"
        if truncated:
            problem = "descriptors were lost: too many are open"
        elif not isinstance(name, str) or len(name) > MAX_NAME:
            problem = "bad name"
        elif op == "keep" and (not name or not fds):
            problem = "nothing to keep"
        elif op == "keep" and name not in self._held and len(self._held) >= MAX_NAMES:
            problem = "too many names"
        elif op == "keep":
            _close(self._held.pop(name, []))
            self._held[name] = fds
            return {"ok": True}, []
        elif op == "take" and name in self._held:
            return {"ok": True}, self._held[name]
        elif op == "drop":
            _close(self._held.pop(name, []))
            return {"ok": True}, []
        elif op == "list":
            return {"ok": True, "names": list(self._held)}, []
        elif op == "hello":
            return {"ok": True, "pid": os.getpid(), "version": VERSION}, []
        _close(fds)
        return {"ok": False, "error": problem}, []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuse.keeper", description="Holds descriptors for another process.")
    parser.add_argument("path", help="of the socket")
    parser.add_argument("--listen-fd", type=int, help="the socket, listening already")
    parser.add_argument("--lock-fd", type=int, help="the lock that goes with it")
    arguments = parser.parse_args()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("-900")  # when memory runs out, this process is the last that helps by dying
    if arguments.listen_fd is None:
        bound = bind(arguments.path)
        if bound is None:
            sys.stderr.write(f"{arguments.path}: a keeper lives there already\n")
            return 1
        listener, _ = bound
    else:
        listener = socket.socket(fileno=arguments.listen_fd)
    Keeper(listener).run()
    for path in (arguments.path, f"{arguments.path}.lock"):
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108
    return 0


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
