"""Pieces of background work side by side, on few threads: what hangs holds up what is of its own group, and little else.

A group is what may hang as a whole: a registry, with its credential provider. Of one group only some are under way at once, so
that there is room for the others; what has no room waits, first come, first served. Threads are started as they are needed, and
end when there is nothing to do. It knows nothing of the work. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

AT_ONCE: Final = 16
OF_ONE_GROUP: Final = 4

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    key: str
    group: str
    work: Callable[[], None]


class Lanes:
    """`offer` work, and `close` at last."""

    def __init__(self, name: str, *, at_once: int = AT_ONCE, of_one_group: int = OF_ONE_GROUP) -> None:
        """`name`: of the threads. `of_one_group`: how many of the `at_once` may be of the same one."""
        self._name = name
        self._at_once = at_once
        self._of_one_group = of_one_group
        self._lock = threading.Lock()
        self._keys: set[str] = set()
        """Of what waits or is under way."""
        self._waiting: deque[_Piece] = deque()
        self._under_way: Counter[str] = Counter()
        """By group."""
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def offer(self, key: str, group: str, work: Callable[[], None]) -> bool:
        """Has `work` done as soon as there is room. False, and nothing, where work of this key waits or is under way, where no
        thread can be had, and after `close`."""
        with self._lock:
            if self._closed or key in self._keys:
                return False
            offered = _Piece(key=key, group=group, work=work)
            self._keys.add(key)
            self._waiting.append(offered)
            if len(self._threads) < self._at_once and (piece := self._next_locked()):
                try:
                    self._start_locked(piece)
                except RuntimeError:  # no thread can be had just now: what waited before has those that are there
                    self._under_way -= Counter((piece.group,))
                    self._waiting.appendleft(piece)
                    self._waiting.remove(offered)
                    self._keys.remove(key)
                    return False
        return True

    def close(self) -> None:
        """Gives up what waits, and waits for what is under way: whoever wants that to be short cancels it before."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _start_locked(self, piece: _Piece) -> None:
        thread = threading.Thread(target=self._run, args=(piece,), name=self._name, daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self, piece: _Piece | None) -> None:
        while piece is not None:
            try:
                piece.work()
            except Exception:  # noqa: BLE001  (the edge of a thread: one piece must not keep the others from their turn)
                _log.exception("background_work_failed", key=piece.key)
            with self._lock:
                self._keys.remove(piece.key)
                self._under_way -= Counter((piece.group,))
                # One has ended, so one may begin at most: this thread takes it.
                piece = self._next_locked()
                if piece is None:
                    self._threads.remove(threading.current_thread())

    def _next_locked(self) -> _Piece | None:
        for piece in self._waiting:
            if self._under_way[piece.group] < self._of_one_group:
                self._waiting.remove(piece)
                self._under_way[piece.group] += 1
                return piece
        return None
