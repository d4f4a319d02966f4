"""The worker's part in learned orders: what is fetched by one, when a load is told, and to whom."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from fuse.artifact.profile import Runs
from fuse.fetch import protocol
from fuse.filesystem.table import Blob, Table
from fuse.filesystem.tree import Tree
from fuse.prefetch.order import Range
from fuse.prefetch.touches import Touches
from fuse.worker.learning import LEAST_BLOCKS, LOOKS, QUIET_S, Learning
from fuse.worker.reader import Reader
from fuse.worker.session_client import FetchSession
from tests.support.fetchsession import BLOCK, FakeFetcher
from tests.support.workerprocess import table_of

CONTENT = bytes(range(256)) * (BLOCK // 256) * 5
FORWARD: Runs = ((0, 0, 1), (0, 1, 1), (0, 2, 3))
BACKWARD: Runs = ((0, 3, 2), (0, 0, 3))


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[FakeFetcher]:
    found = FakeFetcher(tmp_path, [CONTENT])
    yield found
    found.close()


def planned(order: Runs) -> Iterator[Range]:
    """What is fetched in the background: in that order, if there is one."""
    return (Range(*run) for run in order or FORWARD)


def client() -> FetchSession:
    return FetchSession(1, background=planned, on_condition=lambda *_: None, on_quarantine=lambda _: None)


def asked(fetcher: FakeFetcher) -> list[tuple[int, int, bool]]:
    return [(want.first, want.count, want.anew) for want in fetcher.wants("background")]


def learned(fetcher: FakeFetcher) -> list[Runs]:
    return [message.runs for message in fetcher.asked if isinstance(message, protocol.Learned)]


async def until(condition) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - the other end is a thread
            await trio.sleep(0.002)


def greeted(fetcher: FakeFetcher, order: Runs = ()) -> socket.socket:
    """A session of a fetcher that has said its order before anything is asked."""
    found = fetcher.session()
    fetcher.send(protocol.Order(runs=order))
    return found


@pytest.mark.parametrize(("order", "expected"), [(BACKWARD, BACKWARD), ((), FORWARD), (None, FORWARD)])
def test_the_background_begins_in_the_order_that_was_said_first(
    fetcher: FakeFetcher, order: Runs | None, expected: Runs
) -> None:
    """No request of another order is sent before; a fetcher that knows of no orders is not waited for."""

    async def run() -> None:
        session = client()
        session.set_prefetch(True)
        sock = fetcher.session() if order is None else greeted(fetcher, order)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, sock)
            await until(lambda: len(asked(fetcher)) == len(expected))
            nursery.cancel_scope.cancel()

    trio.run(run)
    assert [(first, count, False) for _, first, count in expected] == asked(fetcher)


def test_an_order_that_comes_later_replaces_what_was_asked(fetcher: FakeFetcher) -> None:
    """The first request of the new one says so; the same once more changes nothing; the next fetcher is asked in the new one."""

    async def run() -> None:
        session = client()
        session.set_prefetch(True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, greeted(fetcher))
            await until(lambda: len(asked(fetcher)) == 3)
            fetcher.send(protocol.Order(runs=BACKWARD))
            fetcher.send(protocol.Order(runs=BACKWARD))
            fetcher.send(protocol.Order(runs=()))
            await until(lambda: len(asked(fetcher)) == 5)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, greeted(fetcher))
            await until(lambda: len(asked(fetcher)) == 7)
            nursery.cancel_scope.cancel()

    trio.run(run)
    assert [(3, 2, True), (0, 3, False), (3, 2, False), (0, 3, False)] == asked(fetcher)[3:]


def test_a_mount_without_prefetch_asks_for_nothing(fetcher: FakeFetcher) -> None:
    """Whatever is known; when it is turned on, the order is."""

    async def run() -> None:
        session = client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, greeted(fetcher, BACKWARD))
            session.open(0)
            await until(lambda: session.blobs[0].cached)
            assert [] == asked(fetcher)
            session.set_prefetch(True)
            await until(lambda: len(asked(fetcher)) == 2)
            nursery.cancel_scope.cancel()
        session.close()

    trio.run(run)
    assert [(3, 2), (0, 3)] == [(first, count) for first, count, _ in asked(fetcher)]


def test_a_load_is_told_to_a_fetcher_that_wants_to_know(fetcher: FakeFetcher) -> None:
    """Never to one that has not said so, whose session would end; what is untold at the end is said as the last thing."""

    async def run() -> None:
        session = client()
        assert not session.tell_learned(FORWARD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(session.run, fetcher.session(), last_words=lambda: FORWARD))
            session.open(0)
            await until(lambda: session.blobs[0].cached)
            assert not session.tell_learned(FORWARD)
            session.wish(0, 0, 1)
            await until(lambda: fetcher.wants("readahead"))
            nursery.cancel_scope.cancel()
        assert [] == learned(fetcher)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(session.run, greeted(fetcher), last_words=lambda: BACKWARD))
            await until(lambda: session.tell_learned(FORWARD))
            await until(lambda: learned(fetcher))
            nursery.cancel_scope.cancel()
        await until(lambda: len(learned(fetcher)) == 2)
        assert not session.tell_learned(FORWARD)
        session.close()

    trio.run(run)
    assert [FORWARD, BACKWARD] == learned(fetcher)


def test_readers_touch_and_read_ahead_does_not(fetcher: FakeFetcher) -> None:
    """Cached or not, each block that a READ is for, and no other."""
    touches = Touches(table_of({"a": (0, BLOCK // 2, 3 * BLOCK)}, [CONTENT]))
    opened: list[bool] = []

    async def run() -> None:
        session = client()
        tree = Tree(table_of({"a": (0, BLOCK // 2, 3 * BLOCK)}, [CONTENT]))
        reader = Reader(tree, session, touches=touches, on_open=lambda: opened.append(True))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, fetcher.session())
            reader.prepare(2)
            for offset, size in ((2 * BLOCK, BLOCK), (2 * BLOCK, 10), (0, 1), (3 * BLOCK, 5)):
                await reader.read(2, offset, size)
            nursery.cancel_scope.cancel()
        session.close()

    trio.run(run)
    assert ((0, 2, 2), (0, 0, 1)) == touches.runs()
    assert [True] == opened


# ---- when a load is over ----


class Load:
    """Touches, and what was told of them."""

    def __init__(self) -> None:
        self.touches = Touches(Table(artifacts=(), blobs=(Blob("d", 100 * BLOCK, ""),), nodes=()))
        self.told: list[tuple[float, int]] = []
        self.heard = True
        self.learning = Learning(self.touches, self.tell)

    def tell(self, runs: Runs) -> bool:
        self.told.append((trio.current_time(), sum(blocks for _, _, blocks in runs)))
        return self.heard

    def read(self, first: int, last: int) -> None:
        self.touches.note(0, first, last)


def test_a_load_is_told_once_when_it_is_quiet() -> None:
    """Pauses that are shorter do not end it; what follows is told with it; what is no news is not told."""

    async def run() -> list[tuple[float, int]]:
        load = Load()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.learning.run)
            await trio.sleep(100)
            load.learning.opened()
            for first in (0, 20, 40):
                load.read(first, first + 9)
                await trio.sleep(QUIET_S * 0.8)
            await trio.sleep(100)
            assert () == load.learning.untold()
            load.learning.opened()
            load.read(0, 9)
            await trio.sleep(100)
            load.learning.opened()
            load.read(60, 69)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        return [(at - began, blocks) for at, blocks in load.told]

    (first, blocks), (second, more) = trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert (30, 40) == (blocks, more)
    assert QUIET_S <= first - (100 + 1.6 * QUIET_S) <= QUIET_S + QUIET_S / LOOKS
    assert second > 300


def test_a_look_is_no_load() -> None:
    """What reads little teaches nothing; nor does a worker that ends then say anything."""

    async def run() -> None:
        load = Load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.learning.run)
            load.learning.opened()
            load.read(0, LEAST_BLOCKS - 2)
            await trio.sleep(100)
            assert ([], ()) == (load.told, load.learning.untold())
            load.read(0, LEAST_BLOCKS - 1)
            assert ((0, 0, LEAST_BLOCKS),) == load.learning.untold()
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_load_that_nobody_heard_of_is_told_again() -> None:
    """The fetcher was being replaced."""

    async def run() -> None:
        load = Load()
        load.heard = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.learning.run)
            load.learning.opened()
            load.read(0, 50)
            await trio.sleep(100)
            assert load.learning.untold()
            load.heard = True
            load.learning.opened()
            await trio.sleep(100)
            assert () == load.learning.untold()
            nursery.cancel_scope.cancel()
        assert [51, 51] == [blocks for _, blocks in load.told]

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
