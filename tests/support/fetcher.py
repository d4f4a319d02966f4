"""The real fetcher, as its users see it: a process of its own (or its engine in ours), an administrator, a worker's session."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.cache.blob import CachedBlob
from fuse.cache.index import BLOCK_BYTES, block_length
from fuse.errors import from_fault
from fuse.fetch import protocol
from fuse.filesystem.table import Blob, Node, Table, encode
from fuse.registry.access import Access, Endpoint

LIMIT_S = 20.0


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Polls until `condition` is true."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s} s in vain: {what}"
        time.sleep(0.005)
    return value


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two blocks are alike."""
    words = b"".join((seed * 1000003 + number).to_bytes(8, "little") * 512 for number in range(-(-size // 4096)))
    return words[:size]


def access_to(url: str) -> Access:
    host = url.split("://")[1]
    return Access(registry=host, endpoints=(Endpoint(url=f"{url}/v2", origin=True, named=True),), local_allowed=True)


def table_of(blobs: Sequence[tuple[Digest, int]]) -> Table:
    nodes = [Node(1, "", "d", 0o555, 0)]
    nodes += [Node(1, f"f{i}", "f", 0o444, 0, size, i) for i, (_, size) in enumerate(blobs)]
    return Table(artifacts=(), blobs=tuple(Blob(str(digest), size, "x") for digest, size in blobs), nodes=tuple(nodes))


_AS_USER = """
import os, sys
from fuse.fetch.__main__ import main
uid = int(sys.argv[1])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
os._exit(main(sys.argv[2:]))
"""


class FetcherProcess:
    """`python -m fuse.fetch` on a cache directory."""

    def __init__(self, cache: Path, *, user: int | None = None, files: int | None = None, **settings: Any) -> None:
        """`files`: how many it may have open."""
        self.cache = cache
        settings.setdefault("free_space_fraction", 0.0)
        # The interpreter may lie where other users cannot start it: so another user is become after the imports.
        program = ["-m", "fuse.fetch"] if user is None else ["-c", _AS_USER, str(user)]
        limited = [] if files is None else ["prlimit", f"--nofile={files}:{files}"]
        self.process = subprocess.Popen(
            [*limited, sys.executable, *program, "--cache-dir", str(cache), "--settings", json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def connect(self) -> Admin:
        def attempt() -> Admin | None:
            assert self.process.poll() is None, self.output()
            try:
                return Admin(wire.connect(self.cache / protocol.SOCKET_NAME))
            except (FileNotFoundError, ConnectionRefusedError):
                return None

        admin: Admin = wait_until(attempt, "the fetcher to listen")
        return admin

    def output(self) -> str:
        out, err = self.process.communicate(timeout=LIMIT_S)
        return (out + err).decode()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Admin:
    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT_S)
        self.channel: wire.Channel[protocol.Answer] = wire.Channel(sock, protocol.Answer)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, kind: type[Any], fds: Sequence[int] = (), **fields: Any) -> Any:
        """The answer; a refusal is raised as the error it carries."""
        answer, received = self.ask_with_fds(kind, fds, **fields)
        wire.close_all(received)
        return answer

    def ask_with_fds(self, kind: type[Any], fds: Sequence[int] = (), **fields: Any) -> tuple[Any, list[int]]:
        self._number += 1
        self.channel.send(kind(id=self._number, **fields), fds)
        received = self.channel.receive()
        assert received is not None, "the fetcher hung up"
        answer, got = received
        assert answer.id == self._number
        if isinstance(answer, protocol.Refused):
            raise from_fault(answer.fault)
        return answer, got

    def blobs(self, kind: type[Any], **fields: Any) -> list[protocol.CachedBlob]:
        answer = self.ask(kind, **fields)
        found = list(answer.blobs)
        while not answer.last:
            received = self.channel.receive()
            assert received is not None
            answer = received[0]
            found += answer.blobs
        return found

    def attach(self, mount: str, blobs: Sequence[tuple[Digest, int]], url: str = "http://127.0.0.1:5000") -> Worker:
        """`url`: the registry that the blobs come from, and that `grant` must name."""
        ours, theirs = wire.pair()
        table = wire.sealed_memfd("table", encode(table_of(blobs)))
        try:
            self.ask(protocol.Attach, (theirs.fileno(), table), mount=mount, registry=url.split("://")[1])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(table)
        return Worker(ours, blobs)

    def grant(self, mount: str, url: str, name: str = "g", repository: str = "m") -> None:
        reference = f"{url.split('://')[1]}/{repository}:v1"
        self.ask(protocol.Grant, mount=mount, grant=name, reference=reference, access=access_to(url))

    def progress(self, mount: str) -> protocol.MountProgress:
        answer: protocol.MountProgress = self.ask(protocol.Progress, mount=mount)
        return answer

    def close(self) -> None:
        self.channel.close()


class Worker:
    """A worker's end of a session; records what it is told."""

    def __init__(self, sock: socket.socket, blobs: Sequence[tuple[Digest, int]]) -> None:
        self.blobs = blobs
        self.channel: wire.Channel[protocol.ToWorker] = wire.Channel(sock, protocol.ToWorker)
        self.files: dict[int, CachedBlob | None] = {}
        self.ready: set[tuple[int, int]] = set()
        self.loans: dict[tuple[int, int], bytes] = {}
        self.failed: list[protocol.Failed] = []
        self.quarantined: list[protocol.Quarantined] = []
        self.stalls: list[protocol.Stalled] = []
        self.gone = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> None:
        while (received := self.channel.receive()) is not None:
            message, fds = received
            with self._news:
                match message:
                    case protocol.Opened():
                        old = self.files.get(message.blob)
                        if old is not None:
                            old.close()
                        self.files[message.blob] = CachedBlob(*fds) if fds else None
                    case protocol.Ready():
                        self.ready |= {(message.blob, message.first + i) for i in range(message.count)}
                    case protocol.Loan():
                        self.loans[message.blob, message.block] = wire.read_whole(fds[0], BLOCK_BYTES)
                        wire.close_all(fds)
                    case protocol.Failed():
                        self.failed.append(message)
                    case protocol.Quarantined():
                        self.quarantined.append(message)
                    case protocol.Stalled():
                        self.stalls.append(message)
                self._news.notify_all()
        with self._news:
            self.gone = True
            self._news.notify_all()

    def wait(self, condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
        with self._news:
            assert self._news.wait_for(condition, limit_s), f"waited {limit_s} s in vain: {what}"

    def open(self, blob: int = 0) -> CachedBlob | None:
        self.channel.send(protocol.Open(blob=blob))
        self.wait(lambda: blob in self.files or self.failed, f"blob {blob} to be opened")
        return self.files.get(blob)

    def want(self, blob: int, first: int, count: int = 1, priority: protocol.Priority = "demand") -> None:
        self.channel.send(protocol.Want(blob=blob, first=first, count=count, priority=priority))

    def damage(self, blob: int, first: int, count: int = 1) -> None:
        """Reports blocks as unreadable; they are no longer taken for ready."""
        self.ready -= {(blob, first + i) for i in range(count)}
        self.channel.send(protocol.Damaged(blob=blob, first=first, count=count))

    def demand(self, blob: int, first: int, count: int = 1, limit_s: float = LIMIT_S) -> bytes:
        """The bytes of the blocks, through the cache or lent; raises the fault with which they failed."""
        self.want(blob, first, count)
        wanted = {(blob, first + i) for i in range(count)}

        def settled() -> bool:
            return bool(self.failed) or all(key in self.ready or key in self.loans for key in wanted)

        self.wait(settled, f"blocks {sorted(wanted)}", limit_s)
        if self.failed:
            raise from_fault(self.failed[0].fault)
        content = b""
        for number, block in sorted(wanted):
            if (number, block) in self.loans:
                content += self.loans[number, block]
                continue
            files = self.files[number]
            assert files is not None
            assert files.has(block)
            assert files.check(block)
            content += files.read(block * BLOCK_BYTES, block_length(files.size, block))
        return content

    def close(self) -> None:
        self.channel.hang_up()
        self._thread.join()
        self.channel.close()
        for files in self.files.values():
            if files is not None:
                files.close()
        self.files.clear()
