"""What a load and a model's own index say goes before the default order, and a learned order before both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fuse.fetch import protocol
from fuse.filesystem.tree import Tree
from fuse.prefetch import order
from fuse.prefetch.order import Range
from fuse.worker.hinting import Hinting
from fuse.worker.reader import Reader
from fuse.worker.session_client import FetchSession
from tests.support.fetchsession import BLOCK, FakeFetcher
from tests.support.workerprocess import table_of

SHARD = bytes(range(256)) * (BLOCK // 256) * 12
LONG_HEADER = (2 * BLOCK).to_bytes(8, "little") + SHARD[8:]
INDEX = json.dumps({"weight_map": {"a": "b.safetensors", "c": "c.safetensors"}}).encode()
A, B, C = 0, 1, 2
FILES = {
    "a.safetensors": (A, 0, len(SHARD)),
    "b.safetensors": (B, 0, len(SHARD)),
    "c.safetensors": (C, 0, len(SHARD)),
    "model.safetensors.index.json": (3, 0, len(INDEX)),
}
INO_B, INO_C = 3, 4
# Equal blobs would be one file of the fake's cache.
BLOBS = [SHARD + b"a", SHARD + b"b", LONG_HEADER + b"c", INDEX]


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[FakeFetcher]:
    found = FakeFetcher(tmp_path, BLOBS)
    yield found
    found.close()


class Mount:
    """The parts of a worker that decide about order."""

    def __init__(self, *, strict: bool = False) -> None:
        self.table = table_of(FILES, BLOBS)
        tree = Tree(self.table)
        self.session = FetchSession(
            len(BLOBS),
            withheld=frozenset(range(len(BLOBS))) if strict else frozenset(),
            background=lambda learned: order.ranges(self.table, learned, self.hinting.named),
            on_condition=lambda *_: None,
            on_quarantine=lambda _: None,
        )
        self.reader = Reader(tree, self.session)
        self.hinting = Hinting(tree, self.reader, self.session)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - the other end is a thread
            await trio.sleep(0.002)


def wished(fetcher: FakeFetcher) -> list[protocol.Want]:
    return fetcher.wants("background")


def planned(wants: list[protocol.Want]) -> list[Range]:
    return [Range(want.blob, want.first, want.count) for want in wants]


def test_the_background_is_planned_anew_by_what_an_index_names(fetcher: FakeFetcher) -> None:
    """The index is read as any reader reads it; what was asked in the order of names is taken back, once."""

    async def run() -> None:
        mount = Mount()
        mount.session.set_prefetch(True)
        default, by_index = [*order.ranges(mount.table)], [*order.ranges(mount.table, (), {INO_B, INO_C})]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.session.run, fetcher.session())
            await until(lambda: planned(wished(fetcher)) == default)
            nursery.start_soon(mount.hinting.run)
            mount.hinting.wanted.set()
            await until(lambda: len(wished(fetcher)) == 2 * len(default))
            nursery.cancel_scope.cancel()
        mount.session.close()
        again = wished(fetcher)[len(default) :]
        assert by_index == planned(again)
        assert by_index != default
        assert [want.anew for want in again] == [True] + [False] * (len(again) - 1)
        assert frozenset({INO_B, INO_C}) == mount.hinting.named

    trio.run(run)


def test_an_index_is_left_alone_where_nothing_is_prefetched_or_it_is_withheld(fetcher: FakeFetcher) -> None:
    """It would be bytes that nobody reads; and a strict mount would wait for the whole of it."""

    async def run() -> None:
        sparing, strict = Mount(), Mount(strict=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sparing.session.run, fetcher.session())
            nursery.start_soon(sparing.hinting.run)
            await trio.testing.wait_all_tasks_blocked()
            strict.hinting.wanted.set()
            with trio.fail_after(10):
                await strict.hinting.run()
            nursery.cancel_scope.cancel()
        assert [] == fetcher.demanded()
        assert not sparing.hinting.named | strict.hinting.named

    trio.run(run)


def test_an_index_that_cannot_be_read_changes_nothing(fetcher: FakeFetcher) -> None:
    """The task ends, and the mount goes on."""

    async def run() -> None:
        mount = Mount()
        mount.hinting.wanted.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.session.run, fetcher.session())
            fetcher.fail(3, 0, 1)
            with trio.fail_after(10):
                await mount.hinting.run()
            nursery.cancel_scope.cancel()
        mount.session.close()
        assert frozenset() == mount.hinting.named

    trio.run(run)


def test_a_shard_that_a_load_has_come_to_goes_before_the_others(fetcher: FakeFetcher) -> None:
    """The last first, each once; and once more before all to a fetcher that is new."""

    async def run() -> None:
        mount = Mount()
        mount.session.set_prefetch(True)
        total = len([*order.ranges(mount.table)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.session.run, fetcher.session())
            await until(lambda: len(wished(fetcher)) == total)
            for ino, offset in ((INO_B, 9 * BLOCK), (INO_C, 6 * BLOCK), (INO_B, 6 * BLOCK)):
                await mount.reader.read(ino, offset, 4096)
            await until(lambda: len(wished(fetcher)) == total + 2)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.session.run, fetcher.session())
            await until(lambda: len(wished(fetcher)) == 2 * total + 4)
            nursery.cancel_scope.cancel()
        mount.session.close()
        news = wished(fetcher)[total:]
        assert [Range(B, 0, 12), Range(C, 0, 12), Range(C, 0, 12), Range(B, 0, 12)] == planned(news[:4])
        assert [True, True, False, False] == [want.front for want in news[:4]]
        assert not any(want.anew for want in news)

    trio.run(run)


@pytest.mark.parametrize(("prefetch", "learned"), [(False, ()), (True, ((A, 0, 4),))])
def test_a_load_prefers_nothing_without_prefetch_or_against_what_was_learned(
    fetcher: FakeFetcher, prefetch: bool, learned: tuple[tuple[int, int, int], ...]
) -> None:
    """The order of an earlier load knows more than the beginning of this one."""

    async def run() -> None:
        mount = Mount()
        mount.session.set_prefetch(prefetch)
        total = len([*order.ranges(mount.table, learned)]) if prefetch else 0
        async with trio.open_nursery() as nursery:
            sock = fetcher.session()
            fetcher.send(protocol.Order(runs=learned))
            nursery.start_soon(mount.session.run, sock)
            await mount.reader.read(INO_C, 0, 4096)  # from here on the session runs
            await until(lambda: len(wished(fetcher)) == total)
            await mount.reader.read(INO_B, 9 * BLOCK, 4096)
            await trio.testing.wait_all_tasks_blocked()
            mount.session.wish(C, 3, 1)  # said after all that there was to say
            await until(lambda: any(want.blob == C for want in fetcher.wants("readahead")))
            nursery.cancel_scope.cancel()
        mount.session.close()
        assert not any(want.front for want in wished(fetcher))

    trio.run(run)


def test_a_long_header_is_read_ahead_when_its_file_is_opened(fetcher: FakeFetcher) -> None:
    """What is fetched of every shard is its first block."""

    async def run() -> None:
        mount = Mount()
        mount.reader.set_prefetch(full=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.session.run, fetcher.session())
            await mount.reader.read(INO_C, 0, 4096)  # absent: it is learned of at the next one
            await mount.reader.read(INO_C, 0, 4096)
            await until(lambda: fetcher.wants("readahead"))
            nursery.cancel_scope.cancel()
        mount.session.close()
        assert [Range(C, 1, 2)] == planned(fetcher.wants("readahead"))

    trio.run(run)
