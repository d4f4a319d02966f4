"""A read may be given up at any moment: the kernel interrupts it, or the worker drains. Nothing of it may stay behind.

Each scenario is run as often as a read has moments at which it can be cancelled, and is cancelled at another one each time. Then
nobody waits, other reads of the same blocks are served, and so is the next one.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from fuse.errors import NotFound
from fuse.filesystem.tree import Tree
from fuse.worker.reader import Reader
from fuse.worker.session_client import FetchSession
from tests.support.fetchsession import BLOCK, FakeFetcher
from tests.support.workerprocess import table_of

CONTENT = bytes(range(256)) * (3 * BLOCK // 256) + b"the rest"
INO = 2
MOST_MOMENTS = 100

T = TypeVar("T")


class Moments:
    """Drives a coroutine by hand, and cancels `scope` at its moment number `at`.

    It has one before its first step, one before each thing that it asks of trio, and one after each answer: a cancellation that
    comes then is met by what it does next.
    """

    def __init__(self, scope: trio.CancelScope, at: int) -> None:
        self.passed = 0
        self._scope = scope
        self._at = at

    def _pass(self) -> None:
        if self.passed == self._at:
            self._scope.cancel()
        self.passed += 1

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        answer: Any = None
        thrown: BaseException | None = None
        self._pass()
        while True:
            try:
                question = coroutine.send(answer) if thrown is None else coroutine.throw(thrown)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self._pass()
            try:
                answer, thrown = (yield question), None
            except BaseException as error:
                thrown = error
            self._pass()


def absent(_fetcher: FakeFetcher) -> None:
    """Three blocks are fetched."""


def present(fetcher: FakeFetcher) -> None:
    """All is in the cache."""
    fetcher.blobs[0].fill()


def damaged(fetcher: FakeFetcher) -> None:
    """One block has to be repaired."""
    fetcher.blobs[0].fill()
    fetcher.blobs[0].damage(1)


def lent(fetcher: FakeFetcher) -> None:
    """Nothing can be cached."""
    fetcher.uncached = True


def held(fetcher: FakeFetcher) -> None:
    """Nothing comes until the first read has been given up."""
    fetcher.held = True


@pytest.mark.parametrize("scenario", [absent, present, damaged, lent, held], ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("others", [0, 2], ids=["alone", "with others"])
def test_a_read_given_up_at_any_moment_leaves_nothing(tmp_path: Path, scenario: Any, others: int) -> None:
    """Whoever reads the same blocks beside it, and whoever comes next, gets them; no wait and no use of a file is left."""
    for at in range(MOST_MOMENTS):
        directory = tmp_path / str(at)
        directory.mkdir()
        fetcher = FakeFetcher(directory, [CONTENT])
        scenario(fetcher)
        try:
            if trio.run(_one, fetcher, at, others):
                return
        finally:
            fetcher.close()
    pytest.fail(f"a read has more than {MOST_MOMENTS} moments")


async def _one(fetcher: FakeFetcher, at: int, others: int) -> bool:
    """Whether the read was over before it came to moment `at`."""
    session = FetchSession(1, background=lambda _: iter(()), on_condition=lambda *_: None, on_quarantine=lambda _: None)
    reader = Reader(Tree(table_of({"whole": (0, 0, len(CONTENT))}, [CONTENT])), session)
    reader.set_prefetch(full=False)
    served = 0

    async def other() -> None:
        nonlocal served
        assert CONTENT[BLOCK - 5 : 2 * BLOCK] == bytes(await reader.read(INO, BLOCK - 5, BLOCK + 5))
        served += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, fetcher.session())
            for _ in range(others):
                nursery.start_soon(other)
            with trio.CancelScope() as scope:
                moments = Moments(scope, at)
                if fetcher.held:
                    # It would wait for ever; somebody has to give it up when it has passed all that it can pass.
                    nursery.start_soon(_give_up, scope, reader, fetcher)
                content = await moments.drive(reader.read(INO, 100, 2 * BLOCK))
                assert CONTENT[100 : 100 + 2 * BLOCK] == bytes(content)
            fetcher.release()
            while served < others:  # noqa: ASYNC110 - the other end is a thread
                await trio.sleep(0.001)
            assert 0 == len(session.waits)
            assert 0 == reader.counters.waiting
            assert [0] == [state._users for state in session.blobs]
            assert CONTENT[-BLOCK:] == bytes(await reader.read(INO, len(CONTENT) - BLOCK, BLOCK))
            nursery.cancel_scope.cancel()
    session.close()
    return moments.passed <= at


async def _give_up(scope: trio.CancelScope, reader: Reader, fetcher: FakeFetcher) -> None:
    while not fetcher.demanded():  # noqa: ASYNC110 - the other end is a thread
        await trio.sleep(0.001)
    await trio.testing.wait_all_tasks_blocked(0.01)
    scope.cancel()


def test_a_read_given_up_while_it_fails_leaves_nothing(tmp_path: Path) -> None:
    """The same where the answer is that there will be none: every read beside it gets that answer."""
    for at in range(MOST_MOMENTS):
        directory = tmp_path / str(at)
        directory.mkdir()
        fetcher = FakeFetcher(directory, [CONTENT])
        fetcher.held = True
        try:
            if trio.run(_failing, fetcher, at):
                return
        finally:
            fetcher.close()
    pytest.fail(f"a read has more than {MOST_MOMENTS} moments")


async def _failing(fetcher: FakeFetcher, at: int) -> bool:
    session = FetchSession(1, background=lambda _: iter(()), on_condition=lambda *_: None, on_quarantine=lambda _: None)
    reader = Reader(Tree(table_of({"whole": (0, 0, len(CONTENT))}, [CONTENT])), session)
    failed = 0

    async def other() -> None:
        nonlocal failed
        with pytest.raises(NotFound):
            await reader.read(INO, BLOCK, 10)
        failed += 1

    async def fail_all() -> None:
        while not fetcher.demanded():  # noqa: ASYNC110 - the other end is a thread
            await trio.sleep(0.001)
        fetcher.fail(0, 0, len(CONTENT) // BLOCK + 1)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, fetcher.session())
            nursery.start_soon(other)
            nursery.start_soon(fail_all)
            with trio.CancelScope() as scope:
                moments = Moments(scope, at)
                with pytest.raises((NotFound, trio.Cancelled)) as raised:
                    await moments.drive(reader.read(INO, 100, 2 * BLOCK))
                if isinstance(raised.value, trio.Cancelled):
                    raise raised.value
            while not failed:  # noqa: ASYNC110 - the other end is a thread
                await trio.sleep(0.001)
            assert 0 == len(session.waits)
            assert 0 == reader.counters.waiting
            nursery.cancel_scope.cancel()
    session.close()
    return moments.passed <= at
