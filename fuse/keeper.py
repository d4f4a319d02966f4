"""The keeper: holds descriptors for a process that may die, and gives them back to its successor.

A FUSE connection lives as long as somebody holds its device. The keeper is that somebody: it holds, under a name for each mount,
an opaque list of descriptors, and knows nothing of what they are. It needs no upgrade, hence its rule: the standard library only.
docs/KEEPER.md is for those who run it or write a client.

One JSON object a packet over a Unix SOCK_SEQPACKET socket; each request has one answer, in order. Only the keeper's own user may
speak, and root.

    {"op": "hello"}                        -> {"ok": true, "pid": 4711, "version": 2, "needs": 1}
    {"op": "keep", "name": N} + 1..8 fds   -> {"ok": true}             replaces what N held
    {"op": "take", "name": N}              -> {"ok": true} + the fds   which it goes on holding
    {"op": "drop", "name": N}              -> {"ok": true}             also when N is not held
    {"op": "list"}                         -> {"ok": true, "names": [N, …]}
    {"op": "revive"} + 1..8 fds            -> {"ok": true}             since version 2, see below
    anything else                          -> {"ok": false, "error": "…"}

Fields that are not known are ignored, in requests and answers. `version` grows with every operation that is added, `needs` is the
oldest version whose client this keeper understands: it grows never, if that can be helped.

`revive` is how a holder without a supervisor gets one. The first descriptor is a file with {"argv": […], "env": {…}}, the
program of a successor, which finds the others as 3, 4, … When the connection that said so hangs up while something is held, the
program is started: five times at once, then after pauses that grow to 5 s; ten seconds of connection start that over. It is for
the successor to say `revive` again.

It ends by itself once it holds nothing and nobody is connected, unless told to stay. One thread; nothing blocks but the wait for
the next message.
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
import time

VERSION = 2
NEEDS = 1
MAX_FDS = 8
MAX_NAMES = 4096
MAX_NAME = 64
_MAX_PACKET = 1024
_FIRST_CLIENT_S = 30.0
_MAX_PROGRAM = 1024 * 1024
_AT_ONCE = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_SERVICE_S = 10.0


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


class Revival:
    """The program of a successor, and when it is started next. `due` is None while the last one is connected, or about to be."""

    def __init__(self, fds: list[int]) -> None:
        """Takes over `fds`. Raises ValueError, and leaves them to the caller."""
        try:
            program = json.loads(os.pread(fds[0], _MAX_PROGRAM, 0))
            argv, environment = program["argv"], program["env"]
            if not argv or not all(isinstance(text, str) for text in (*argv, *environment, *environment.values())):
                raise ValueError("argv and env hold text")
        except (OSError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no program: {error}") from None
        self._argv, self._environment, self._fds = argv, environment, fds
        self._failures = 0
        self._since = time.monotonic()
        self.due: float | None = None

    def replaces(self, former: Revival | None) -> None:
        """The program that was started has connected: whether it serves long enough counts from now on."""
        if former is not None:
            self._failures = former._failures  # noqa: SLF001
            _close(former._fds)  # noqa: SLF001

    def lost(self) -> None:
        """The program ended, or hung up."""
        now = time.monotonic()
        if self.due is None:
            self._failures = 1 if now - self._since >= _SERVICE_S else self._failures + 1
            late = self._failures - _AT_ONCE
            self.due = now + (min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(late - 1, 16)) if late > 0 else 0.0)

    def start(self) -> int | None:
        """Its process id; None when it cannot be started, which is tried again."""
        self.due, self._since = None, time.monotonic()
        copies: list[int] = []
        actions: list[tuple[object, ...]] = []
        actions += [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        try:
            for number, fd in enumerate(self._fds[1:], 3):
                # Out of the way of the numbers that they are going to have.
                copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + MAX_FDS))
                actions.append((os.POSIX_SPAWN_DUP2, copies[-1], number))
            return os.posix_spawn(
                self._argv[0],
                self._argv,
                self._environment,
                file_actions=actions,
                setsid=True,
                setsigdef=[signal.SIGHUP, signal.SIGINT, signal.SIGTERM],
            )
        except OSError:
            self.lost()
            return None
        finally:
            _close(copies)


class Keeper:
    """Answers clients until there is neither a client nor anything to hold; with `stay` for ever."""

    def __init__(self, listener: socket.socket, *, stay: bool = False) -> None:
        self._listener = listener
        self._stay = stay
        self._revival: Revival | None = None
        self._reviver: socket.socket | None = None
        """Who said `revive`, while connected."""
        self._listener.setblocking(False)
        self._held: dict[str, list[int]] = {}
        self._clients: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        limit_s: float | None = None if self._stay else _FIRST_CLIENT_S
        while True:
            events = self._selector.select(limit_s)
            needed = self._stay or self._held or self._clients
            if not events and not needed:
                return
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
                else:
                    self._reap(key.fd, key.data)
            limit_s = self._revive()
            if not (self._stay or self._held or self._clients):
                limit_s = 0  # whoever is in the queue already is still let in

    def _revive(self) -> float | None:
        """Starts a successor that is due; how long to wait for the next."""
        revival = self._revival
        if revival is None or revival.due is None or not self._held:
            return None
        left_s = revival.due - time.monotonic()
        if left_s > 0:
            return left_s
        pid = revival.start()
        if pid is not None:
            try:
                self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            except OSError:
                # No descriptors: if it does not come, another is started; of two, one finds the other's lock.
                revival.lost()
        return 0.0 if revival.due is not None else None

    def _reap(self, pidfd: int, pid: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)
        if self._revival is not None and self._reviver is None:
            self._revival.lost()

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
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds of Python before 3.12 takes no notice of its flags
            if not packet:
                raise ConnectionResetError
            answer, given = self._answer(
                client, packet, list(fds), truncated=bool(flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC))
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
        if client is self._reviver:
            self._reviver = None
            if self._revival is not None:
                self._revival.lost()

    def _answer(
        self, client: socket.socket, packet: bytes, fds: list[int], *, truncated: bool
    ) -> tuple[dict[str, object], list[int]]:
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
            return {"ok": True, "pid": os.getpid(), "version": VERSION, "needs": NEEDS}, []
        elif op == "revive" and fds:
            try:
                revival = Revival(fds)
            except ValueError as error:
                problem = str(error)
            else:
                revival.replaces(self._revival)
                self._revival, self._reviver = revival, client
                return {"ok": True}, []
        _close(fds)
        return {"ok": False, "error": problem}, []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuse.keeper", description="Holds descriptors for another process.")
    parser.add_argument("path", help="of the socket")
    parser.add_argument("--listen-fd", type=int, help="the socket, listening already")
    parser.add_argument("--lock-fd", type=int, help="the lock that goes with it")
    parser.add_argument("--stay", action="store_true", help="do not end, whatever is held")
    arguments = parser.parse_args()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
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
        for fd in (arguments.listen_fd, arguments.lock_fd):
            os.set_inheritable(fd, False)  # a successor that had the lock would keep another keeper from starting
    try:
        Keeper(listener, stay=arguments.stay).run()
    finally:
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
