"""One administration connection to the fetcher: requests from many threads, answers matched by their ids.

A thread receives. When the fetcher is gone, every request that waits, and every later one, raises `Unavailable`, and `gone` is
true.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from fuse import threads, tracing, wire
from fuse.artifact.profile import MAX_PROFILE_BYTES
from fuse.errors import Cancelled, InvalidConfig, InvalidRequest, NotFound, Unavailable, from_fault
from fuse.fetch import protocol
from fuse.filesystem.table import MAX_TABLE_BYTES, View
from fuse.mounting import eviction, process
from fuse.registry.access import Access

_FATE_LIMIT_S: Final = 0.5
_CANCEL_STEP_S: Final = 0.05
_CANCEL_LIMIT_S: Final = 2.0
_ANSWER_LIMIT_S: Final = 30.0
"""For requests that need no network."""
_GREETING_LIMIT_S: Final = 15.0
"""A fetcher that listens and does not greet within this time is wedged, or its cache's disk is."""
_FAREWELL_LIMIT_S: Final = 3.0
"""For what is taken back: it is done as soon as the fetcher reads it, and who unmounts does not wait for one that hangs."""
_SILENCE_S: Final = 2.0
"""Without an answer for so long, nothing more is asked but what somebody waits for."""

_AnswerT = TypeVar("_AnswerT", bound=protocol.Answer)


class _Pending:
    def __init__(self) -> None:
        self.answers: list[protocol.Answer] = []
        self.fds: list[int] = []
        self.complete = threading.Event()


class Question:
    """How a mount is getting on, asked without waiting. While it is not answered the same question is not asked again."""

    def __init__(self, connection: Connection, sent: tuple[int, _Pending]) -> None:
        self._connection = connection
        self._sent = sent
        self.asked_at: Final = time.monotonic()

    @property
    def answered(self) -> bool:
        return self._sent[1].complete.is_set()

    def wait_answer(self, deadline: float) -> protocol.MountProgress | None:
        """None when there is none until `deadline` (monotonic), or only a refusal; may be called again."""
        if not self._sent[1].complete.wait(_left(deadline)):
            return None
        self.drop()
        answers = self._sent[1].answers
        answer = answers[-1] if answers else None
        return answer if isinstance(answer, protocol.MountProgress) else None

    def drop(self) -> None:
        """Nobody may have waited for the answer, or not for long enough."""
        self._connection.forget(self._sent)


class Connection:
    """An open connection; ready to ask."""

    def __init__(self, path: Path, *, on_gone: Callable[[Connection], None]) -> None:
        """Raises OSError or Unavailable when no fetcher answers there, InvalidRequest when it speaks another version, and
        InvalidConfig when another user listens there."""
        self.path = path
        self._on_gone = on_gone
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._questions: dict[str, Question] = {}
        self._asking = threading.Lock()
        self._gone = False
        self._greeted = False
        self._version = 0
        self._pinged: int | None = None
        self._child: process.Child | None = None
        self._last_words: Callable[[], str] = str
        sock = _connected(path)
        self._channel: wire.Channel[protocol.Answer] = wire.Channel(sock, protocol.Answer)
        try:
            self._pidfd, self._listener = eviction.peer_pidfd(sock), wire.peer_credentials(sock)[0]
        except OSError:
            self._channel.close()
            raise
        self._reader = threading.Thread(target=self._read, name="fetcher", daemon=True)
        if not threads.begin(self._reader):
            self._channel.close()
            os.close(self._pidfd)
            raise Unavailable("no thread can be started to speak with the fetcher", where=str(path))
        try:
            self.pid = self._greet()
        except Unavailable as error:
            self.evict(error.what)  # unless it is gone already
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def counts(self) -> bool:
        """Whether `question("")` is answered, with what the fetcher has counted."""
        return self._version >= protocol.COUNTS_SINCE

    @property
    def silent(self) -> bool:
        """Whether a `ping` is unanswered."""
        with self._lock:
            return self._pinged is not None

    def ping(self) -> None:
        """Asks for a sign of life; nothing while one is asked for. Of no use to a fetcher that is gone."""
        number = next(self._ids)
        with self._lock:
            if self._gone or self._pinged is not None:
                return
            self._pinged = number
        try:
            self._channel.send(protocol.Hello(id=number))
        except OSError:
            return  # the reader's thread says so to all

    def evict(self, reason: str) -> None:
        """Kills the fetcher, if it is ours. Nothing if it is gone."""
        with self._lock:
            if self._gone:
                return
            pidfd = os.dup(self._pidfd)
        try:
            eviction.evict(pidfd, self._listener, self.path.with_name(protocol.LOCK_NAME), reason)
        finally:
            os.close(pidfd)

    def belongs_to(self, child: process.Child, last_words: Callable[[], str]) -> None:
        """The fetcher at the other end is this child of ours, and says its last words there."""
        self._child, self._last_words = child, last_words
        child.reap_later()

    def fate(self) -> tuple[str, str]:
        """How the fetcher ended, once it has, and its last words, as far as that can be known."""
        if self._child is None or not self._child.wait(_FATE_LIMIT_S):
            return "hung up", self._last_words()
        return self._child.fate, self._last_words()

    def attach(
        self, mount: str, registry: str, session: int, table: int, *, reference: str = "", copy_out: bool = False
    ) -> None:
        """`reference`: of the artifact, whose chunk index is to prove its blobs, and whose profile to order them. `copy_out`: a
        later mount of it may be native, so parts of blobs that have to be files for that are made such."""
        self.ask(
            lambda number: protocol.Attach(
                id=number, mount=mount, registry=registry, reference=reference, copy_out=copy_out
            ),
            (session, table),
        )

    def grant(self, mount: str, grant: str, reference: str, access: Access) -> None:
        trace = tracing.traceparent()
        self.ask(
            lambda number: protocol.Grant(
                id=number, mount=mount, grant=grant, reference=reference, access=access, traceparent=trace
            )
        )

    def revoke(self, mount: str, grant: str) -> None:
        self.ask(lambda number: protocol.Revoke(id=number, mount=mount, grant=grant), limit_s=_FAREWELL_LIMIT_S)

    def detach(self, mount: str) -> None:
        """Detaching what is not attached is no error."""
        try:
            self.ask(lambda number: protocol.Detach(id=number, mount=mount), limit_s=_FAREWELL_LIMIT_S)
        except NotFound:
            return

    def question(self, mount: str) -> Question | None:
        """Asks for the progress of a mount; None when the fetcher is gone, or has not answered what it was asked before.

        Of no mount (an empty name): for what it has counted, if it `counts`.

        A fetcher that hangs is not flooded: its socket would fill, and whoever writes to it would hang as well.
        """
        with self._asking:
            asked = self._questions.get(mount)
            if asked is not None and not asked.answered:
                return asked
            self._drop_question(mount)
            if self.silent_s > _SILENCE_S:
                return None
            try:
                sent = self._send(lambda number: protocol.Progress(id=number, mount=mount), ())
            except (Unavailable, InvalidRequest):
                return None
            self._questions[mount] = asked = Question(self, sent)
            return asked

    @property
    def silent_s(self) -> float:
        """How long the oldest question has been waiting for its answer; 0 when none waits."""
        now = time.monotonic()
        waiting = [asked.asked_at for asked in list(self._questions.values()) if not asked.answered]
        return now - min(waiting) if waiting and not self._gone else 0.0

    def drop_question(self, mount: str) -> None:
        """The mount is detached: nobody wants to know any more."""
        with self._asking:
            self._drop_question(mount)

    def _drop_question(self, mount: str) -> None:
        asked = self._questions.pop(mount, None)
        if asked is not None:
            asked.drop()

    def progress(self, mount: str, limit_s: float = _ANSWER_LIMIT_S) -> protocol.MountProgress:
        answers = self.ask(lambda number: protocol.Progress(id=number, mount=mount), limit_s=limit_s)
        return _only(answers, protocol.MountProgress)

    def resolve(
        self,
        reference: str,
        access: Access,
        view: View,
        cancel: threading.Event | None,
        *,
        look_again: bool = False,
    ) -> tuple[protocol.Resolved, bytes]:
        """The artifact and its encoded table. It takes as long as the registry does."""
        pending = self._send(
            lambda number: protocol.Resolve(
                id=number,
                reference=reference,
                access=access,
                view=view,
                look_again=look_again,
                traceparent=tracing.traceparent(),
            ),
            (),
        )
        try:
            resolved = _only(self._wait(pending, limit_s=None, cancel=cancel), protocol.Resolved)
            return resolved, _content(pending[1], MAX_TABLE_BYTES, reference)
        finally:
            self.forget(pending)

    def find_profile(self, reference: str) -> tuple[str, bytes]:
        """Whose profile of the artifact (pinned) is known, and the profile, encoded. Raises NotFound when there is none,
        InvalidRequest when the fetcher is too old to know any."""
        if self._version < protocol.PROFILES_SINCE:
            raise InvalidRequest(
                "the fetcher that runs is of an older version, which knows no profiles",
                where=str(self.path),
                fix="end what uses this cache directory",
            )
        pending = self._send(lambda number: protocol.FindProfile(id=number, reference=reference), ())
        try:
            found = _only(self._wait(pending, limit_s=_ANSWER_LIMIT_S, cancel=None), protocol.FoundProfile)
            return found.source, _content(pending[1], MAX_PROFILE_BYTES, reference)
        finally:
            self.forget(pending)

    def ask(
        self,
        make: Callable[[int], protocol.Request],
        fds: Sequence[int] = (),
        *,
        limit_s: float | None = _ANSWER_LIMIT_S,
        cancel: threading.Event | None = None,
    ) -> list[protocol.Answer]:
        """Sends what `make` makes of a fresh id; the answer's parts. A refusal is raised as the error that it carries."""
        pending = self._send(make, fds)
        try:
            return self._wait(pending, limit_s=limit_s, cancel=cancel)
        finally:
            self.forget(pending)

    def close(self) -> None:
        """Ends the connection, and with it all that was attached and granted over it. `on_gone` is called as after a death."""
        self._channel.hang_up()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _greet(self) -> int:
        greeting = self.ask(lambda number: protocol.Hello(id=number), limit_s=_GREETING_LIMIT_S)
        welcome = _only(greeting, protocol.Welcome)
        if welcome.needs > protocol.VERSION or welcome.version < protocol.NEEDS:
            raise InvalidRequest(
                f"the fetcher that runs speaks version {welcome.version}, not {protocol.VERSION}",
                where=str(self.path),
                fix="end what uses this cache directory",
            )
        with self._lock:
            if self._gone:
                raise Unavailable("the fetcher ended at once", where=str(self.path))
            self._greeted = True
            self._version = welcome.version
        return welcome.pid

    def _send(self, make: Callable[[int], protocol.Request], fds: Sequence[int]) -> tuple[int, _Pending]:
        number, pending = next(self._ids), _Pending()
        with self._lock:
            if self._gone:
                raise Unavailable("the fetcher is gone", where=str(self.path))
            self._pending[number] = pending
        try:
            self._channel.send(make(number), fds)
        except (OSError, ValueError) as error:
            self.forget((number, pending))
            if isinstance(error, ValueError):
                raise InvalidRequest(f"too large for the fetcher: {error}") from None
            raise Unavailable(f"the fetcher is gone: {error.strerror}", where=str(self.path)) from None
        except BaseException:
            self.forget((number, pending))
            raise
        return number, pending

    def _wait(
        self, sent: tuple[int, _Pending], *, limit_s: float | None, cancel: threading.Event | None
    ) -> list[protocol.Answer]:
        number, pending = sent
        deadline = None if limit_s is None else time.monotonic() + limit_s
        cancelled = False
        while not pending.complete.wait(_CANCEL_STEP_S if cancel is not None and not cancelled else _left(deadline)):
            if cancel is not None and cancel.is_set() and not cancelled:
                cancelled = True
                deadline = time.monotonic() + _CANCEL_LIMIT_S
                self._cancel(number)
            elif deadline is not None and time.monotonic() >= deadline:
                if cancelled:
                    raise Cancelled("given up")
                raise Unavailable(f"the fetcher did not answer within {limit_s:.0f} s", where=str(self.path))
        with self._lock:
            answers = list(pending.answers)
        if not answers or (isinstance(answers[-1], protocol.CacheBlobs) and not answers[-1].last):
            raise Unavailable("the fetcher died", where=str(self.path))
        last = answers[-1]
        if isinstance(last, protocol.Refused):
            raise from_fault(last.fault)
        return answers

    def _cancel(self, number: int) -> None:
        try:
            self._channel.send(protocol.Cancel(id=number))
        except OSError:
            return  # the reader's thread says so to all

    def forget(self, sent: tuple[int, _Pending]) -> None:
        """Nobody waits for the answer any more."""
        number, pending = sent
        with self._lock:
            self._pending.pop(number, None)
            fds, pending.fds = pending.fds, []
        wire.close_all(fds)

    def _read(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._deliver(*received)
        except (OSError, ValueError):
            pass  # a message that is not understood, from a process that parses hostile input: it is not trusted any more
        finally:
            self._channel.hang_up()
            with self._lock:
                self._gone = True
                greeted = self._greeted
                waiting = list(self._pending.values())
            for pending in waiting:
                pending.complete.set()
            self._channel.close()
            os.close(self._pidfd)
            if greeted:
                self._on_gone(self)

    def _deliver(self, answer: protocol.Answer, fds: list[int]) -> None:
        with self._lock:
            if answer.id == self._pinged:
                self._pinged = None
            pending = self._pending.get(answer.id)
            if pending is not None:
                pending.answers.append(answer)
                pending.fds.extend(fds)
        if pending is None:  # nobody waits any more
            wire.close_all(fds)
        elif not isinstance(answer, protocol.CacheBlobs) or answer.last:
            pending.complete.set()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _content(pending: _Pending, limit_bytes: int, where: str) -> bytes:
    """What came beside the answer."""
    if len(pending.fds) != 1:
        raise Unavailable("the fetcher sent no content with its answer", where=where)
    return wire.read_whole(pending.fds[0], limit_bytes)


def _only(answers: list[protocol.Answer], kind: type[_AnswerT]) -> _AnswerT:
    answer = answers[-1]
    if not isinstance(answer, kind):
        raise Unavailable(f"the fetcher answered with {type(answer).__name__} where {kind.__name__} was expected")
    return answer


def _connected(path: Path) -> socket.socket:
    """A socket whose other end began to listen as this user, or as root: it will be told credentials.

    The fetcher listens before it becomes nobody. Whoever else can write the cache directory could listen there in its place.
    """
    sock = wire.connect(path)
    uid = wire.peer_uid(sock)
    if uid not in (0, os.geteuid()):
        sock.close()
        raise InvalidConfig(
            f"the fetcher there is user {uid}'s", where=str(path.parent), fix="name another cache directory"
        )
    return sock
