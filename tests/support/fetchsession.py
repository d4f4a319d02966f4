"""A fetcher in the test's own process: serves blobs from memory into real cache files, over the real session protocol.

It does what the test says: hold blocks back, fail, lend, damage, quarantine, die. It also remembers all that it was asked.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.cache import index
from fuse.errors import Fault
from fuse.fetch import protocol
from fuse.worker.waiters import joined

BLOCK = protocol.BLOCK_BYTES


class Blob:
    """One blob and its cache files."""

    def __init__(self, directory: Path, content: bytes) -> None:
        self.content = content
        self.digest = Digest(algorithm="sha256", hex=hashlib.sha256(content).hexdigest())
        self._data = directory / f"{self.digest.hex}.data"
        self._index = directory / f"{self.digest.hex}.index"
        if not self._data.exists():
            self._data.touch()
            os.truncate(self._data, len(content))
            fd = os.open(self._index, os.O_RDWR | os.O_CREAT, 0o444)
            index.create(fd, self.digest, len(content))
            os.close(fd)
        fd = os.open(self._index, os.O_RDWR)
        self.index = index.IndexWriter(fd)
        os.close(fd)

    def block(self, number: int) -> bytes:
        return self.content[number * BLOCK : (number + 1) * BLOCK]

    def publish(self, number: int) -> None:
        with self._data.open("r+b") as data:
            data.seek(number * BLOCK)
            data.write(self.block(number))
        entry = index.entry_of(self.block(number))
        self.index.record(number, entry)
        self.index.publish(number, entry)

    def fill(self) -> None:
        with self._data.open("r+b") as data:
            data.write(self.content)
        for number in range(self.index.blocks):
            self.index.publish(number, index.entry_of(self.block(number)))
        self.index.set_flags(index.COMPLETE | index.VERIFIED)
        self.index.flush()

    def damage(self, number: int) -> None:
        with self._data.open("r+b") as data:
            data.seek(number * BLOCK + 17)
            data.write(b"rotten")

    def descriptors(self) -> list[int]:
        return [os.open(self._data, os.O_RDONLY), self.index.reader_fd()]


class FakeFetcher:
    """Serves sessions, one after another. `held`: demand waits until `release`; `uncached`: only loans."""

    def __init__(self, directory: Path, contents: list[bytes]) -> None:
        self.blobs = [Blob(directory, content) for content in contents]
        self.asked: list[protocol.FromWorker] = []
        self.uncached = False
        self.proven = False
        self.held = False
        self._failing: dict[int, Fault] = {}
        self._waiting: list[protocol.Want] = []
        self._lock = threading.Lock()
        self._channel: wire.Channel[protocol.FromWorker] | None = None
        self._thread: threading.Thread | None = None

    def session(self) -> socket.socket:
        """A new session; the returned end is the worker's."""
        self.die()
        ours, theirs = wire.pair()
        channel = wire.Channel[protocol.FromWorker](ours, protocol.FromWorker)
        self._channel = channel
        self._thread = threading.Thread(target=self._serve, args=(channel,), daemon=True)
        self._thread.start()
        return theirs

    def die(self) -> None:
        """Ends the session; what was wanted of it is lost."""
        if self._channel is not None and self._thread is not None:
            self._channel.hang_up()
            self._thread.join(10)
            self._channel.close()
            self._channel = self._thread = None
        with self._lock:
            self._waiting.clear()

    def close(self) -> None:
        self.die()
        for blob in self.blobs:
            blob.index.close()

    def demanded(self, blob: int | None = None) -> list[int]:
        """The blocks that were demanded, in order."""
        return [block for want in self.wants("demand") if blob in (None, want.blob) for block in _blocks(want)]

    def wants(self, priority: str) -> list[protocol.Want]:
        with self._lock:
            return [m for m in self.asked if isinstance(m, protocol.Want) and m.priority == priority]

    def release(self) -> None:
        """Answers what was held back, and holds nothing any more."""
        with self._lock:
            self.held = False
            waiting, self._waiting = self._waiting, []
        for want in waiting:
            self._deliver(want)

    def lend(self, which: Callable[[int], bool]) -> None:
        """Lends such blocks of what was held back."""
        with self._lock:
            wanted = [(want.blob, block) for want in self._waiting for block in _blocks(want) if which(block)]
        for blob, block in wanted:
            self.send(protocol.Loan(blob=blob, block=block), [wire.sealed_memfd("loan", self.blobs[blob].block(block))])

    def send(self, message: protocol.ToWorker, fds: list[int] | None = None) -> None:
        assert self._channel is not None
        self._channel.send(message, fds or [])
        wire.close_all(fds or [])

    def fail(self, blob: int, first: int, count: int, kind: str = "not_found") -> None:
        """Answers so, and every later demand of that blob too, until `heal`."""
        fault = Fault(kind=kind, what="gone for good")
        with self._lock:
            self._failing[blob] = fault
            self._waiting = [want for want in self._waiting if want.blob != blob]
        self.send(protocol.Failed(blob=blob, first=first, count=count, fault=fault))

    def heal(self) -> None:
        with self._lock:
            self._failing.clear()

    def _serve(self, channel: wire.Channel[protocol.FromWorker]) -> None:
        with suppress(OSError):
            while (received := channel.receive()) is not None:
                self._answer(received[0])

    def _answer(self, message: protocol.FromWorker) -> None:
        with self._lock:
            self.asked.append(message)
            demand = isinstance(message, protocol.Want) and message.priority == "demand"
            fault = self._failing.get(message.blob) if demand else None
            if fault is None and self.held and isinstance(message, protocol.Want) and demand:
                self._waiting.append(message)
                return
        if fault is not None and isinstance(message, protocol.Want):
            self.send(protocol.Failed(blob=message.blob, first=message.first, count=message.count, fault=fault))
            return
        match message:
            case protocol.Open(blob=blob, live=live):
                if live:
                    self.blobs[blob].index.share()
                self.send(
                    protocol.Opened(blob=blob, proven=self.proven),
                    [] if self.uncached else self.blobs[blob].descriptors(),
                )
            case protocol.Damaged(blob=blob, first=first, count=count):
                for block in range(first, first + count):
                    self.blobs[blob].index.forget(block)
            case protocol.Want(priority="demand"):
                self._deliver(message)

    def _deliver(self, want: protocol.Want) -> None:
        blob = self.blobs[want.blob]
        if self.uncached:
            for block in _blocks(want):
                self.send(protocol.Loan(blob=want.blob, block=block), [wire.sealed_memfd("loan", blob.block(block))])
            return
        for block in _blocks(want):
            if not blob.index.has(block):
                blob.publish(block)
        for first, count in joined(_blocks(want)):
            self.send(protocol.Ready(blob=want.blob, first=first, count=count))


def _blocks(want: protocol.Want) -> range:
    return range(want.first, want.first + want.count)
