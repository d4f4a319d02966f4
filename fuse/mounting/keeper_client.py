"""The holder's side of the keeper (`fuse/keeper.py` documents the protocol): one connection, one request at a time.

Thread-safe.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuse import keeper, wire
from fuse.errors import Unavailable
from fuse.mounting import process

_LIMIT_S: Final = 5.0
_AGAIN_S: Final = 0.02
_REVIVES_SINCE: Final = 2
_MAX_ANSWER: Final = keeper.MAX_NAMES * (keeper.MAX_NAME + 4) + 4096


class KeeperClient:
    """A connection to the keeper at `path`."""

    def __init__(self, path: Path, sock: socket.socket, child: process.Child | None) -> None:
        self.path = path
        self._sock = sock
        self._child = child
        self._lock = threading.Lock()
        self.broken = False
        """Whether an answer did not come: a later one would be taken for that of another request, so there are no more."""
        self._sock.settimeout(_LIMIT_S)
        greeting = self._ask({"op": "hello", "version": keeper.VERSION})[0]
        self.pid = int(str(greeting["pid"]))
        self.version = int(str(greeting.get("version", 1)))
        needs = int(str(greeting.get("needs", 1)))
        if needs > keeper.VERSION:
            raise Unavailable(
                f"the keeper there is of version {self.version} and wants clients of {needs}, this is {keeper.VERSION}",
                where=str(path),
            )

    @classmethod
    def open(cls, path: Path, limit_s: float | None = None) -> KeeperClient:
        """Connects; starts the keeper where none lives. Raises Unavailable when it does not answer for `limit_s` (None: 5 s)."""
        deadline = time.monotonic() + (_LIMIT_S if limit_s is None else limit_s)
        while True:  # a keeper may be ending just now: then a later turn starts one
            child = None
            try:
                child = _start(path)
                return cls._connect(path, child)
            except (OSError, Unavailable) as error:
                if child is not None:
                    child.kill()
                    child.wait()
                if time.monotonic() > deadline:
                    raise Unavailable(f"the keeper cannot be started: {error}", where=str(path)) from None
            time.sleep(_AGAIN_S)

    @classmethod
    def connect(cls, path: Path) -> KeeperClient:
        """Connects to a keeper that somebody else runs. Raises Unavailable."""
        try:
            return cls._connect(path, None)
        except OSError as error:
            raise Unavailable(f"the keeper does not answer: {error.strerror or error}", where=str(path)) from None

    @classmethod
    def find(cls, path: Path) -> KeeperClient | None:
        """Connects to a keeper that lives already."""
        try:
            return cls._connect(path, None)
        except (OSError, Unavailable):
            return None

    @classmethod
    def _connect(cls, path: Path, child: process.Child | None) -> KeeperClient:
        sock = wire.connect(path)
        try:
            client = cls(path, sock, child)
        except BaseException:
            sock.close()
            raise
        if child is not None:
            child.reap_later()
        return client

    def fileno(self) -> int:
        return self._sock.fileno()

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Gives copies of `fds` to the keeper, in place of what it holds under `name`."""
        self._ask({"op": "keep", "name": name}, fds)

    def take(self, name: str) -> list[int]:
        """Copies of what is held under `name`; the caller owns them. Raises Unavailable when nothing is."""
        return self._ask({"op": "take", "name": name})[1]

    def drop(self, name: str) -> None:
        self._ask({"op": "drop", "name": name})

    def revive(self, fds: Sequence[int]) -> bool:
        """Has the keeper start a successor of this process when it dies (`fuse/keeper.py`); False if it is too old for that."""
        if self.version < _REVIVES_SINCE:
            return False
        self._ask({"op": "revive"}, fds)
        return True

    def names(self) -> list[str]:
        names = self._ask({"op": "list"})[0]["names"]
        return [str(name) for name in names] if isinstance(names, list) else []

    def close(self, *, wait: bool = False) -> None:
        """Closes the connection; with `wait` returns when the keeper has ended, as it does if it holds nothing for anyone."""
        self._sock.close()
        if wait and self._child is not None:
            self._child.wait(_LIMIT_S)  # which reaps it
        elif wait:
            process.wait_for_pid(self.pid, _LIMIT_S)

    def _ask(self, message: dict[str, object], fds: Sequence[int] = ()) -> tuple[dict[str, object], list[int]]:
        with self._lock:
            if self.broken:
                raise Unavailable("the keeper did not answer before", where=str(self.path))
            try:
                socket.send_fds(self._sock, [json.dumps(message).encode()], list(fds))
                packet, given = wire.receive(self._sock, _MAX_ANSWER, keeper.MAX_FDS)
            except OSError as error:
                self.broken = True
                raise Unavailable(f"the keeper does not answer: {error}", where=str(self.path)) from None
        if not packet:
            raise Unavailable("the keeper is gone", where=str(self.path))
        answer: dict[str, object] = json.loads(packet)
        if answer.get("ok") is not True:
            wire.close_all(given)
            raise Unavailable(f"the keeper refuses: {answer.get('error')}", where=str(self.path))
        return answer, given


def _start(path: Path) -> process.Child | None:
    """Starts a keeper; None when one lives already. The socket listens before the process runs: connecting never has to wait."""
    bound = keeper.bind(os.fspath(path))
    if bound is None:
        return None
    listener, lock = bound
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # As a file, isolated and without site-packages: 20 ms to start, and half the memory.
        argv = [sys.executable, "-I", "-S", str(keeper.__file__), os.fspath(path)]
        argv += ["--listen-fd", str(listener.fileno()), "--lock-fd", str(lock)]
        return process.spawn(argv, pass_fds=(listener.fileno(), lock), stderr=null)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        listener.close()
        os.close(lock)
        os.close(null)
