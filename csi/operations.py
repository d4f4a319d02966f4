"""What is under way at each target (of a node), or for each name (of a controller): who may start, who joins, who must wait.

At one target there is one operation at a time. An equal request joins it and shares its outcome; a different one is told to come
back (ABORTED); a negation cancels what it negates and waits until that has cleaned up. An operation belongs to the thread that
started it and goes on when its caller has given up: CSI knows no cancelling but the negation. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from fuse.errors import Cancelled, InProgress, WeightlessError, from_fault

T = TypeVar("T")


class Operation(Generic[T]):
    """One piece of work at one target. `T` is what it finds out, for all who join it."""

    def __init__(self, verb: str, volume_id: str, request: object) -> None:
        self.verb = verb
        self.volume_id = volume_id
        self.request = request
        self.cancel = threading.Event()
        """Set when the work should be given up: it undoes what it did, and raises `Cancelled`."""
        self.outcome: Future[T] = Future()
        """Set last, when another operation may already be at the target."""

    def check(self) -> None:
        """Raises Cancelled when the work should be given up."""
        if self.cancel.is_set():
            raise Cancelled("given up, because the volume is being unpublished or the plugin is ending")


class Operations(Generic[T]):
    """All operations under way, by target path."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_target: dict[str, Operation[T]] = {}
        self._closed = False

    def run(
        self,
        operation: Operation[T],
        target: str,
        work: Callable[[Operation[T]], T],
        *,
        cancels: tuple[str, ...] = (),
        limit_s: float | None = None,
    ) -> T:
        """Does `work`, or joins an equal operation, and returns what it found out.

        Operations of the same volume whose verb is one of `cancels` are cancelled and waited for. Raises what the work
        raises, and InProgress when a different operation is under way, or when `limit_s` passes in waiting.
        """
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            with self._lock:
                current = self._by_target.get(target)
                if current is None:
                    if self._closed:
                        raise Cancelled("the plugin is ending")
                    self._by_target[target] = operation
                    break
            same = current.verb == operation.verb and current.request == operation.request
            negated = current.verb in cancels and current.volume_id == operation.volume_id
            if not same and not negated:
                raise InProgress(
                    f"a different operation ({current.verb}) is under way", where=target, fix="it will be tried again"
                )
            if negated:
                current.cancel.set()
            _wait(current, deadline, target)
            if same:
                return _outcome(current)
        return self._perform(operation, target, work)

    def _perform(self, operation: Operation[T], target: str, work: Callable[[Operation[T]], T]) -> T:
        try:
            found = work(operation)
        except BaseException as error:
            known = error if isinstance(error, WeightlessError) else None
            told = known or WeightlessError("the operation ended unexpectedly", where=target)
            self._leave(target)
            operation.outcome.set_exception(from_fault(told.to_fault()))
            raise
        self._leave(target)
        operation.outcome.set_result(found)
        return found

    def _leave(self, target: str) -> None:
        with self._lock:
            del self._by_target[target]

    def end(self) -> None:
        """Starts no more, and cancels all, without waiting for them."""
        self._give_up()

    def close(self, limit_s: float) -> bool:
        """`end`, and waits. False when some have not ended in time."""
        pending = self._give_up()
        return not wait([operation.outcome for operation in pending], limit_s).not_done

    def _give_up(self) -> list[Operation[T]]:
        """What is under way still."""
        with self._lock:
            self._closed = True
            pending = list(self._by_target.values())
        for operation in pending:
            # An unpublish is let to its end: giving it up would only leave it to the next start.
            if operation.verb != "unpublish":
                operation.cancel.set()
        return pending

    def count(self) -> int:
        with self._lock:
            return len(self._by_target)


def _wait(operation: Operation[T], deadline: float | None, target: str) -> None:
    limit_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    if wait([operation.outcome], limit_s).not_done:
        raise InProgress(f"the {operation.verb} is still under way", where=target, fix="it will be tried again")


def _outcome(operation: Operation[T]) -> T:
    """Of one that has ended."""
    try:
        return operation.outcome.result()
    except WeightlessError as error:
        # A new object: several threads raise it, and each adds its own traceback.
        raise from_fault(error.to_fault()) from None
