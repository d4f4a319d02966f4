"""Ranged reads of blobs through the cache, for the fetcher itself: resolving looks into tar headers and sniffs first bytes.

Blocking; one reader per resolving, used by its thread. What it fetches stays in the cache, for the mount that follows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from fuse import wire
from fuse.artifact.digest import Digest
from fuse.cache.blob import CachedBlob
from fuse.cache.index import BLOCK_BYTES, block_length, blocks_of
from fuse.cache.keys import BlobKey, scope_of
from fuse.errors import CacheFailed, Cancelled, Unavailable, WeightlessError, from_fault
from fuse.fetch import protocol
from fuse.fetch.blobs import Source
from fuse.fetch.engine import Engine
from fuse.fetch.mounts import Mount, Port
from fuse.fetch.runs import Priority

_TRIES: Final = 4
"""How often a block is read from a cache that does not keep it."""
_PATIENCE_S: Final = 60.0
"""A person, or kubelet, waits for a resolve: it does not wait for ever as a read of a file does."""


class _Answers:
    """The sink of one blob's port: what has come, and for what to wait."""

    def __init__(self, condition: threading.Condition) -> None:
        self._condition = condition
        self.files: CachedBlob | None = None
        self.opened = False
        self.loans: dict[int, int] = {}
        self.failure: WeightlessError | None = None
        self.stall: WeightlessError | None = None
        self._closed = False

    def send(self, message: protocol.ToWorker, fds: Sequence[int] = ()) -> None:
        with self._condition:
            if self._closed:  # a lane that had a block in its hands
                wire.close_all(fds)
                return
            match message:
                case protocol.Opened():
                    self.opened = True
                    self.files = CachedBlob(fds[0], fds[1]) if len(fds) == 2 else None
                case protocol.Ready():
                    if self.files is not None:
                        self.files.note_arrived(message.first, message.count)
                case protocol.Loan():
                    previous = self.loans.pop(message.block, None)
                    wire.close_all([previous] if previous is not None else [])
                    self.loans[message.block] = fds[0]
                case protocol.Failed() | protocol.Quarantined():
                    self.failure = from_fault(message.fault)
                case protocol.Stalled():
                    self.stall = from_fault(message.fault) if message.fault else None
            self._condition.notify_all()

    def takes_loan(self) -> bool:
        return True  # it waits for one block at a time

    def come_back(self) -> None:
        with self._condition:
            self.failure = Unavailable("no memory to read a block of it", fix="try again later")
            self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._closed = True
        wire.close_all(list(self.loans.values()))
        if self.files is not None:
            self.files.close()


class EngineReader:
    """Reads blobs with the credentials of one resolve. Pins what it reads until `close`."""

    def __init__(self, engine: Engine, source: Source, registry: str, cancel: threading.Event) -> None:
        """`registry`: the host that `source` reads from."""
        self._engine = engine
        self._scope = scope_of(registry)
        self._source = source
        self._cancel = cancel
        self._condition = threading.Condition()
        self._open: dict[BlobKey, tuple[Mount, Port, _Answers]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, digest: Digest, size: int, offset: int, length: int, /) -> bytes:
        """Raises what the registry said, Cancelled, or Unavailable when nothing came for a minute."""
        first, count = blocks_of(offset, length)
        if not count:
            return b""
        port, answers = self._opened(BlobKey(digest, size, self._scope))
        content = b"".join(self._block(port, answers, size, block) for block in range(first, first + count))
        start = offset - first * BLOCK_BYTES
        return content[start : start + length]

    def _opened(self, key: BlobKey) -> tuple[Port, _Answers]:
        held = self._open.get(key)
        if held is None:
            mount = self._engine.attach("resolve", [key])
            self._engine.grant(mount, "resolve", self._source)
            answers = _Answers(self._condition)
            port = self._engine.open_port(mount, answers)
            held = self._open[key] = (mount, port, answers)
            self._engine.open(port, 0)
        return held[1], held[2]

    def _block(self, port: Port, answers: _Answers, size: int, block: int) -> bytes:
        files = answers.files
        for _ in range(_TRIES):
            if files is not None and files.has(block):
                content = files.read_block(block)
                if content is not None:
                    return content
                self._engine.damaged(port, 0, block, 1)
            self._engine.want(port, 0, block, 1, Priority.DEMAND)
            lent = self._lent_or_there(port, answers, size, block)
            if lent is not None:
                return lent
        raise CacheFailed(
            "the cache disk does not return what was written to it", where=str(port.mount.blobs[0].digest)
        )

    def _lent_or_there(self, port: Port, answers: _Answers, size: int, block: int) -> bytes | None:
        """Waits for a block; its bytes if it was lent, None when it is in the files."""
        files = answers.files
        with self._condition:
            waited = 0.0
            while (
                answers.failure is None and block not in answers.loans and not (files is not None and files.has(block))
            ):
                if self._cancel.is_set():
                    raise Cancelled("given up", where=str(port.mount.blobs[0].digest))
                if waited >= _PATIENCE_S:
                    raise answers.stall or Unavailable(
                        "the registry sends nothing", where=str(port.mount.blobs[0].digest)
                    )
                self._condition.wait(0.25)
                waited += 0.25
            if answers.failure is not None:
                raise answers.failure
            loan = answers.loans.pop(block, None)
        if loan is None:
            return None
        try:
            return os.pread(loan, block_length(size, block), 0)
        finally:
            os.close(loan)

    def close(self) -> None:
        for mount, _, answers in self._open.values():
            self._engine.detach(mount)
            answers.close()
        self._open.clear()
