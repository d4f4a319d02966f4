"""Reads against a fetcher in this process, over the real protocol and real cache files, without a kernel in between."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import trio

from fuse import wire
from fuse.cache import index
from fuse.errors import Corrupt, Fault, NotFound
from fuse.fetch import protocol
from fuse.filesystem.table import Table
from fuse.filesystem.tree import Tree
from fuse.prefetch import order
from fuse.prefetch.streams import FIRST_WINDOW_BYTES
from fuse.worker import reader, session_client
from fuse.worker.reader import Reader
from fuse.worker.session_client import FetchSession
from tests.support.fetchsession import BLOCK, FakeFetcher
from tests.support.workerprocess import table_of

CONTENT = random.Random(1).randbytes(6 * BLOCK + 777)
OTHER = random.Random(2).randbytes(BLOCK // 2)
FILES = {
    "whole": (0, 0, len(CONTENT)),
    "part": (0, BLOCK - 100, 2 * BLOCK),
    "other": (1, 0, len(OTHER)),
    "empty": (-1, 0, 0),
}
WHOLE, PART, SMALL, EMPTY = 2, 3, 4, 5


class Bench:
    """A reader and what it hears of conditions and quarantines."""

    def __init__(self, fetcher: FakeFetcher, table: Table | None = None) -> None:
        table = table or table_of(FILES, [CONTENT, OTHER])
        self.fetcher = fetcher
        self.conditions: list[tuple[Fault | None, bool]] = []
        self.quarantined: list[int] = []
        self.session = FetchSession(
            2,
            background=lambda _: order.ranges(table),
            on_condition=lambda fault, permanent: self.conditions.append((fault, permanent)),
            on_quarantine=self.quarantined.append,
        )
        self.reader = Reader(Tree(table), self.session)
        self.reader.set_prefetch(full=False)

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        return bytes(await self.reader.read(ino, offset, size))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.session.run, self.fetcher.session())
            yield
            nursery.cancel_scope.cancel()

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not condition():  # noqa: ASYNC110 - the other end is a thread
                await trio.sleep(0.002)

    def assert_idle(self) -> None:
        assert len(self.session.waits) == 0
        assert self.reader.counters.waiting == 0


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[FakeFetcher]:
    found = FakeFetcher(tmp_path, [CONTENT, OTHER])
    yield found
    found.close()


def run(
    fetcher: FakeFetcher,
    body: Callable[[Bench], Awaitable[None]],
    *,
    connected: bool = True,
    table: Table | None = None,
) -> None:
    async def main() -> None:
        bench = Bench(fetcher, table)
        with trio.fail_after(30):
            if connected:
                async with bench.connected():
                    await body(bench)
            else:
                await body(bench)
        bench.assert_idle()
        bench.session.close()

    trio.run(main)


def test_any_range_of_any_file_is_its_bytes(fetcher: FakeFetcher) -> None:
    """Random ranges, absent and present, inside one block and over several, past the end."""
    chance = random.Random(3)

    async def body(bench: Bench) -> None:
        for _ in range(200):
            name, ino = chance.choice([("whole", WHOLE), ("part", PART), ("other", SMALL), ("empty", EMPTY)])
            blob, start, size = FILES[name]
            content = [CONTENT, OTHER, b""][blob][start : start + size]
            offset, length = chance.randrange(0, size + 10), chance.choice([1, 4096, 131072, BLOCK, 3 * BLOCK])
            assert await bench.read(ino, offset, length) == content[offset : offset + length]

    run(fetcher, body)


def test_a_read_waits_for_a_thread(fetcher: FakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a limit of processes has been reached it is late, and does not fail: who maps the file would die of that."""
    in_thread, refusals = trio.to_thread.run_sync, iter((True, True))

    async def full(*arguments: Any, **named: Any) -> Any:
        if next(refusals, False):
            raise RuntimeError("can't start new thread")
        return await in_thread(*arguments, **named)

    monkeypatch.setattr(trio.to_thread, "run_sync", full)

    async def body(bench: Bench) -> None:
        assert await bench.read(WHOLE, 5, 100) == CONTENT[5:105]
        assert not next(refusals, False)

    run(fetcher, body)


def test_only_the_blocks_that_a_read_touches_are_demanded(fetcher: FakeFetcher) -> None:
    """A small read in the middle is one block; reading it again asks nothing."""

    async def body(bench: Bench) -> None:
        await bench.read(WHOLE, 3 * BLOCK + 5, 100)
        await bench.read(WHOLE, 3 * BLOCK + 500, 4096)
        assert bench.fetcher.demanded() == [3]
        assert bench.fetcher.wants("readahead") == bench.fetcher.wants("background") == []
        assert bench.reader.counters.at_once == 1

    run(fetcher, body)


def test_readers_of_one_block_are_one_request(fetcher: FakeFetcher) -> None:
    """Ten readers wait for the same block; it is demanded once and all get it."""
    fetcher.held = True

    async def body(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(bench.read, WHOLE, 0, 4096)
            await bench.until(lambda: bench.reader.counters.waiting == 10 and bench.fetcher.demanded())
            bench.fetcher.release()
        assert bench.fetcher.demanded() == [0]
        assert bench.reader.counters.waited_s > 0

    run(fetcher, body)


def test_cancelled_read_leaves_nothing_and_harms_nobody(fetcher: FakeFetcher) -> None:
    """Of two readers of a block one gives up; the other one is served."""
    fetcher.held = True

    async def body(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0) as scope:
                nursery.start_soon(bench.read, WHOLE, 0, 10)
                scope.cancel()
                await bench.read(WHOLE, 0, 3 * BLOCK)
            await bench.until(lambda: bench.reader.counters.waiting == 1)
            with trio.move_on_after(0.05):
                await bench.read(WHOLE, 0, 3 * BLOCK)
            assert len(bench.session.waits) <= 1
            bench.fetcher.release()

    run(fetcher, body)


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when its task is about to run for the `step`-th time."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._left = step
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


@pytest.mark.parametrize("state", ["absent", "present", "damaged", "uncached"])
def test_a_read_that_is_cancelled_at_any_await_leaves_nothing(fetcher: FakeFetcher, state: str) -> None:
    """At every checkpoint of a read, one after the other: nobody waits, nothing is in use, and the next read is right."""
    fetcher.uncached = state == "uncached"
    if state in ("present", "damaged"):
        for number in range(7):
            fetcher.blobs[0].publish(number)

    async def once(step: int) -> bool:
        """Whether the read was cancelled at this step; there are no more when it was not."""
        bench = Bench(fetcher)
        if state == "damaged":
            fetcher.blobs[0].damage(1)
        async with bench.connected():
            with trio.CancelScope() as scope:
                instrument = CancelAt(step, scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    assert await bench.read(WHOLE, BLOCK - 50, BLOCK + 100) == CONTENT[BLOCK - 50 : 2 * BLOCK + 50]
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            await bench.until(lambda: not any(blob._users for blob in bench.session.blobs))
            bench.assert_idle()
            assert await bench.read(WHOLE, BLOCK - 50, BLOCK + 100) == CONTENT[BLOCK - 50 : 2 * BLOCK + 50]
            bench.assert_idle()
        bench.session.close()
        return scope.cancelled_caught

    async def main() -> None:
        with trio.fail_after(60):
            step = 1
            while await once(step):
                step += 1
            assert step > 1  # there was an await to cancel at

    trio.run(main)


def test_rotten_block_is_never_served(fetcher: FakeFetcher) -> None:
    """A block that does not match its checksum at its first use is fetched anew, for each way of reading."""
    for number in range(7):
        fetcher.blobs[0].publish(number)
    fetcher.blobs[0].damage(1)
    fetcher.blobs[0].damage(4)

    async def body(bench: Bench) -> None:
        # The first read opens the files; from then on the fast way is taken where it can be.
        await bench.read(WHOLE, 0, 1)
        assert await bench.read(WHOLE, BLOCK, BLOCK) == CONTENT[BLOCK : 2 * BLOCK]
        assert await bench.read(WHOLE, 4 * BLOCK + 7, 50) == CONTENT[4 * BLOCK + 7 : 4 * BLOCK + 57]
        assert [m.first for m in bench.fetcher.asked if isinstance(m, protocol.Damaged)] == [1, 4]
        assert bench.fetcher.demanded() == [1, 4]

    run(fetcher, body)


def test_disk_that_never_keeps_a_block_becomes_an_error(fetcher: FakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repairs are tried a few times and not for ever."""
    fetcher.blobs[0].publish(0)
    monkeypatch.setattr("fuse.cache.blob.CachedBlob.read_block", lambda *_: None)
    monkeypatch.setattr("fuse.cache.blob.CachedBlob.try_readinto_nowait", lambda *_: False)

    async def body(bench: Bench) -> None:
        with pytest.raises(Corrupt):
            await bench.read(WHOLE, 0, 10)

    run(fetcher, body)


def test_full_disk_reads_go_on_with_loans(fetcher: FakeFetcher) -> None:
    """Nothing can be cached: every byte is right, and the next piece of a lent block costs no second loan."""
    fetcher.uncached = True

    async def body(bench: Bench) -> None:
        assert await bench.read(WHOLE, 0, len(CONTENT)) == CONTENT
        for piece in range(8):
            start = BLOCK + piece * 131072
            assert await bench.read(WHOLE, start, 131072) == CONTENT[start : start + 131072]
        assert sorted(bench.fetcher.demanded()) == list(range(7))

    run(fetcher, body)


@pytest.mark.parametrize("full", ["from the beginning", "meanwhile"])
def test_what_is_lent_to_waiting_reads_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    """However many reads wait with one of their blocks lent and the other missing: few are in memory, and every byte is right."""
    most, kept, blocks = 2, 2, 20
    alive, peak = 0, 0

    class Counted(bytes):
        def __new__(cls, content: bytes) -> Self:
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)
            return super().__new__(cls, content)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    read_whole = wire.read_whole
    monkeypatch.setattr(wire, "read_whole", lambda fd, limit: Counted(read_whole(fd, limit)))
    monkeypatch.setattr(reader, "LENT_READS", most)
    monkeypatch.setattr(session_client, "KEPT_LOANS", kept)
    content = random.Random(4).randbytes(BLOCK) * blocks
    content = b"".join(
        number.to_bytes(4, "big") + content[number * BLOCK + 4 : (number + 1) * BLOCK] for number in range(blocks)
    )
    fetcher = FakeFetcher(tmp_path, [content, OTHER])
    table = table_of({"large": (0, 0, len(content))}, [content, OTHER])
    half = BLOCK // 2
    found: dict[int, bytes] = {}

    async def body(bench: Bench) -> None:
        async def read(block: int) -> None:
            found[block] = await bench.read(WHOLE, block * BLOCK + half, BLOCK)

        if full == "meanwhile":
            await bench.read(WHOLE, (blocks - 1) * BLOCK, 1)
        fetcher.uncached = fetcher.held = True
        before = len(fetcher.demanded())
        async with trio.open_nursery() as nursery:
            for block in range(blocks - 1):
                nursery.start_soon(read, block)
            await bench.until(lambda: bench.reader.counters.waiting == blocks - 1 and len(fetcher.demanded()) > before)
            fetcher.lend(lambda block: block % 2 == 0)
            await bench.until(lambda: peak)
            fetcher.release()
        for block, got in found.items():
            assert got == content[block * BLOCK + half : (block + 1) * BLOCK + half]
        assert len(found) == blocks - 1
        # One is just being handed over.
        assert peak <= 2 * most + kept + 1

    try:
        run(fetcher, body, table=table)
    finally:
        fetcher.close()


def test_cache_is_used_again_when_there_is_room(fetcher: FakeFetcher) -> None:
    """After loans a Ready means that the files can be opened."""
    fetcher.uncached = True

    async def body(bench: Bench) -> None:
        await bench.read(WHOLE, 0, 10)
        bench.fetcher.uncached = False
        assert await bench.read(WHOLE, 5 * BLOCK, 10) == CONTENT[5 * BLOCK : 5 * BLOCK + 10]
        assert bench.session.blobs[0].cached is not None

    run(fetcher, body)


def test_permanent_failure_reaches_the_waiting_reader_only_once(fetcher: FakeFetcher) -> None:
    """The reader gets the error and the condition says so; when blocks come again, both are over."""
    fetcher.held = True

    async def body(bench: Bench) -> None:
        async def fail() -> None:
            await bench.until(bench.fetcher.demanded)
            bench.fetcher.fail(0, 2, 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            with pytest.raises(NotFound):
                await bench.read(WHOLE, 2 * BLOCK, 10)
        assert bench.conditions[-1][1]
        bench.fetcher.heal()
        bench.fetcher.release()
        assert await bench.read(WHOLE, 2 * BLOCK, 10) == CONTENT[2 * BLOCK : 2 * BLOCK + 10]
        assert bench.conditions[-1] == (None, False)

    run(fetcher, body)


def test_quarantine_ends_reads_and_opens(fetcher: FakeFetcher) -> None:
    """Waiting reads, later reads and opens of the blob fail; other blobs do not."""
    fetcher.held = True

    async def body(bench: Bench) -> None:
        async def quarantine() -> None:
            await bench.until(bench.fetcher.demanded)
            bench.fetcher.send(protocol.Quarantined(blob=0, fault=Fault(kind="corrupt", what="wrong bytes")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(quarantine)
            with pytest.raises(Corrupt):
                await bench.read(WHOLE, 0, 10)
        bench.fetcher.release()
        with pytest.raises(Corrupt):
            await bench.read(WHOLE, 0, 10)
        with pytest.raises(Corrupt):
            bench.reader.prepare(WHOLE)
        assert await bench.read(SMALL, 0, 10) == OTHER[:10]
        assert bench.quarantined == [0]
        assert bench.conditions[-1] == (Fault(kind="corrupt", what="wrong bytes"), True)

    run(fetcher, body)


def test_new_fetcher_is_asked_for_all_that_is_outstanding(fetcher: FakeFetcher) -> None:
    """The fetcher dies while reads wait; they wait on, and the next one serves them."""
    fetcher.held = True

    async def body(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, WHOLE, 0, 10)
            nursery.start_soon(bench.read, SMALL, 0, 10)
            async with bench.connected():
                await bench.until(lambda: len(bench.fetcher.demanded()) == 2)
            bench.fetcher.die()
            bench.fetcher.asked.clear()
            bench.fetcher.held = False
            async with bench.connected():
                await bench.until(lambda: bench.reader.counters.waiting == 0)
            assert sorted(bench.fetcher.demanded()) == [0, 0]

    run(fetcher, body, connected=False)


def test_fetcher_that_never_answered_an_open_is_replaced(fetcher: FakeFetcher) -> None:
    """What was asked of nobody yet, files included, is asked of the next one."""

    async def body(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, WHOLE, 0, 10)
            await bench.until(lambda: bench.reader.counters.waiting == 1)
            async with bench.connected():
                await bench.until(lambda: bench.reader.counters.waiting == 0)

    run(fetcher, body, connected=False)


def test_background_order_begins_anew_with_a_new_fetcher(fetcher: FakeFetcher) -> None:
    """Every block of every blob is wanted in the background, of each fetcher."""

    async def body(bench: Bench) -> None:
        bench.session.set_prefetch(True)
        for _ in range(2):
            bench.fetcher.asked.clear()
            async with bench.connected():
                await bench.until(lambda: sum(want.count for want in bench.fetcher.wants("background")) == 8)
            assert bench.fetcher.wants("background")[0].blob == 1

    run(fetcher, body, connected=False)


def test_stall_is_a_condition_and_ends(fetcher: FakeFetcher) -> None:
    """Temporary faults are told and never raised."""

    async def body(bench: Bench) -> None:
        await bench.read(WHOLE, 0, 1)
        fault = Fault(kind="unavailable", what="no answer")
        bench.fetcher.send(protocol.Stalled(fault=fault))
        await bench.until(lambda: bench.conditions == [(fault, False)])
        bench.fetcher.send(protocol.Stalled())
        await bench.until(lambda: bench.conditions[-1] == (None, False))

    run(fetcher, body)


def test_sequential_reading_is_ahead_in_large_ranges(tmp_path: Path) -> None:
    """In full mode a stream's blocks are wanted before they are read."""
    size = 64 * BLOCK
    content = random.Random(4).randbytes(size)
    fetcher = FakeFetcher(tmp_path, [content])
    table = table_of({"f": (0, 0, size)}, [content])

    async def main() -> None:
        session = FetchSession(
            1, background=lambda _: iter(()), on_condition=lambda *_: None, on_quarantine=lambda _: None
        )
        reader = Reader(Tree(table), session)
        reader.set_prefetch(full=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, fetcher.session())
            for block in range(16):
                await reader.read(2, block * BLOCK, BLOCK)
            nursery.cancel_scope.cancel()
        session.close()

    trio.run(main)
    wants = fetcher.wants("readahead")
    fetcher.close()

    assert wants[0].first == FIRST_WINDOW_BYTES // BLOCK
    assert max(want.first + want.count for want in wants) >= 24
    assert max(want.count for want in wants) >= 4


def test_nothing_is_leaked_when_files_are_replaced(fetcher: FakeFetcher) -> None:
    """A new fetcher that gives the same files changes nothing; other files take their place, and no descriptor stays."""

    async def body(bench: Bench) -> None:
        async with bench.connected():
            await bench.read(WHOLE, 0, 10)
        first, count = bench.session.blobs[0].cached, len(os.listdir("/proc/self/fd"))
        async with bench.connected():
            await bench.read(WHOLE, BLOCK, 10)
        assert bench.session.blobs[0].cached is first
        assert len(os.listdir("/proc/self/fd")) == count

    run(fetcher, body, connected=False)


def strict(bench: Bench) -> None:
    """Makes blob 0 one that is withheld, as `verify: strict` does."""
    bench.session.blobs[0].strict = True


def test_a_strict_read_waits_for_the_whole_and_no_longer(fetcher: FakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are there are not served before the blob is verified; the condition says why, and takes it back."""
    monkeypatch.setattr("fuse.worker.session_client.WHOLE_PATIENCE_S", 0.0)
    monkeypatch.setattr("fuse.worker.session_client.VERIFIED_POLL_S", 0.01)

    async def body(bench: Bench) -> None:
        strict(bench)
        found: list[bytes] = []

        async def read() -> None:
            found.append(await bench.read(WHOLE, 0, 100))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await bench.until(lambda: any(isinstance(m, protocol.Want) and m.whole for m in fetcher.asked))
            for block in range(fetcher.blobs[0].index.blocks):
                fetcher.blobs[0].publish(block)
            await bench.until(lambda: any(fault and fault.kind == "unverified" for fault, _ in bench.conditions))
            assert not found
            fetcher.blobs[0].fill()
            fetcher.send(protocol.Ready(blob=0, first=0, count=0))
        assert [CONTENT[:100]] == found
        assert (None, False) == bench.conditions[-1]

    run(fetcher, body)


def test_a_strict_read_of_what_is_proven_chunk_by_chunk_waits_for_its_blocks_only(fetcher: FakeFetcher) -> None:
    """The fetcher's word lifts the gate."""

    async def body(bench: Bench) -> None:
        strict(bench)
        fetcher.proven = True
        assert CONTENT[BLOCK : BLOCK + 10] == await bench.read(WHOLE, BLOCK, 10)

    run(fetcher, body)
    assert [1] == fetcher.demanded()


def test_a_strict_read_of_what_cannot_be_had_fails(fetcher: FakeFetcher) -> None:
    """The failure of the whole is the reader's."""

    async def body(bench: Bench) -> None:
        strict(bench)
        ended: list[str] = []

        async def read() -> None:
            with pytest.raises(NotFound) as raised:
                await bench.read(WHOLE, 0, 100)
            ended.append(raised.value.what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await bench.until(lambda: any(isinstance(m, protocol.Want) and m.whole for m in fetcher.asked))
            fault = Fault(kind="not_found", what="gone for good")
            fetcher.send(protocol.Failed(blob=0, first=0, count=0, fault=fault))
        assert ["gone for good"] == ended

    run(fetcher, body)


def test_a_strict_read_takes_no_loan_from_a_fetcher_that_proves_nothing(fetcher: FakeFetcher) -> None:
    """What was asked of one that proves is not taken from its successor, which has neither index nor room."""

    async def body(bench: Bench) -> None:
        strict(bench)
        fetcher.proven = fetcher.held = True
        found: list[bytes] = []

        async def read() -> None:
            with pytest.raises(Corrupt):
                found.append(await bench.read(WHOLE, 0, 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async with bench.connected():
                await bench.until(fetcher.demanded)
                fetcher.die()
            fetcher.proven, fetcher.held, fetcher.uncached = False, False, True
            async with bench.connected():
                await bench.until(lambda: any(isinstance(m, protocol.Want) and m.whole for m in fetcher.asked))
                assert not found
                assert not bench.session.loans
                fault = Fault(kind="corrupt", what="to end the test")
                fetcher.send(protocol.Quarantined(blob=0, fault=fault))
                await bench.until(lambda: bench.quarantined)
                await bench.until(lambda: not bench.reader.counters.waiting)
        assert not found

    run(fetcher, body, connected=False)


def test_a_strict_read_opens_again_what_is_verified(fetcher: FakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there were no descriptors for its files before."""
    monkeypatch.setattr("fuse.worker.session_client.VERIFIED_POLL_S", 0.01)

    async def body(bench: Bench) -> None:
        strict(bench)
        fetcher.uncached = True
        found: list[bytes] = []

        async def read() -> None:
            found.append(await bench.read(WHOLE, 0, 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await bench.until(lambda: any(isinstance(m, protocol.Want) and m.whole for m in fetcher.asked))
            assert [True] == [m.live for m in fetcher.asked if isinstance(m, protocol.Open)]
            fetcher.blobs[0].fill()
            fetcher.uncached = False
            fetcher.send(protocol.Ready(blob=0, first=0, count=0))
        assert [CONTENT[:10]] == found

    run(fetcher, body)


def test_a_strict_reader_is_withheld_a_verified_blob_that_lost_a_block(fetcher: FakeFetcher) -> None:
    """Neither way of reading serves what was fetched anew and is not verified yet."""

    async def body(bench: Bench) -> None:
        strict(bench)
        fetcher.blobs[0].fill()
        assert CONTENT[:10] == await bench.read(WHOLE, 0, 10)
        writer = fetcher.blobs[0].index
        writer.forget(0)
        writer.clear_flags(index.COMPLETE | index.VERIFIED)
        fetcher.blobs[0].publish(0)
        server = bench.reader.server()
        assert server.read(WHOLE, 0, 10) is None
        assert bench.session.withholds(bench.session.blobs[0])

    run(fetcher, body)
