"""Limits of bytes and of connections: what is drawn, in which order, by whom. On clocks of the tests' own: nothing is timed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.cache.keys import scope_of
from fuse.fetch import bandwidth, dispatch
from fuse.fetch.bandwidth import Bandwidth, Turn, Turns
from fuse.fetch.limits import RegistryLimits
from fuse.fetch.runs import Priority
from fuse.fetch.settings import FetcherSettings
from fuse.fetch.shares import SPARE, LaneCounts, Shares
from tests.support.fetcher import pattern, wait_until
from tests.support.fetchrig import BLOCKS, CONTENT, DIGEST, MIB, Rig, expected
from tests.support.registry import FaultyRegistry

NODE = 8.0 * MIB
OWN = {"slow": 2.0 * MIB, "fast": 20.0 * MIB}


# ---- whose turn it is ----

joins = st.tuples(st.sampled_from(("slow", "fast", "other")), st.sampled_from(Priority), st.integers(1, 4 * MIB))


def go_on(turns: Turns, waiting: dict[Turn, int], now: float) -> tuple[float, Turn]:
    """Lets the time pass until somebody may draw; who, and when."""
    while True:
        waits = {turn: turns.wait_s(turn, now) for turn in waiting}
        ready = [turn for turn, wait_s in waits.items() if not wait_s]
        if ready:
            return now, ready[0]
        assert min(waits.values()) < math.inf, "all wait for each other"
        now += min(waits.values()) * (1 + 1e-9) + 1e-9


@given(st.booleans(), st.lists(st.lists(joins, max_size=4), min_size=1, max_size=12))
def test_limits_hold_urgent_lanes_come_first_and_nobody_waits_for_ever(
    all_limited: bool, script: list[list[tuple[str, Priority, int]]]
) -> None:
    """Whoever draws had nobody more urgent before it that could have; all draw in the end; each limit holds all along."""
    turns = Turns(NODE if all_limited else 0, OWN, 0.0)
    waiting: dict[Turn, int] = {}
    what: dict[Turn, tuple[str, Priority]] = {}
    now = 0.0
    drawn: Counter[str] = Counter()

    def draw() -> None:
        nonlocal now
        now, turn = go_on(turns, waiting, now)
        registry, priority = what[turn]
        for other in waiting:
            its, urgency = what[other]
            shared = all_limited or (its == registry and registry in OWN)
            if urgency < priority and shared:
                assert turns.wait_s(other, now), "a more urgent one could have drawn"
        limits = [(limit, drawn[name]) for name, limit in OWN.items() if name == registry]
        limits += [(NODE, drawn.total())] if all_limited else []
        for limit, before in limits:
            assert before <= limit * (now + bandwidth._BURST_S) * (1 + 1e-6) + 1
        drawn[registry] += waiting[turn]
        turns.draw(turn, waiting.pop(turn), now)
        turns.leave(turn)

    for batch in script:
        for registry, priority, amount in batch:
            if turns.limits(registry):
                turn = turns.join(registry, lambda priority=priority: priority)  # type: ignore[misc]
                waiting[turn], what[turn] = amount, (registry, priority)
        if waiting:
            draw()
    while waiting:
        draw()


def test_equal_lanes_take_turns() -> None:
    """A lane that comes again stands behind those that wait."""
    turns, now = Turns(NODE, {}, 0.0), 0.0
    waiting = {turns.join("one", lambda: Priority.BACKGROUND): number for number in range(3)}
    order = []
    for _ in range(9):
        now, turn = go_on(turns, waiting, now)
        order.append(waiting.pop(turn))
        turns.draw(turn, MIB, now)
        turns.leave(turn)
        waiting[turns.join("one", lambda: Priority.BACKGROUND)] = order[-1]

    assert [0, 1, 2] * 3 == order


def test_a_turn_that_becomes_urgent_comes_first() -> None:
    """A reader that waits for a block of a background run moves it, where it stands."""
    turns, urgent = Turns(NODE, {}, 0.0), False
    first = turns.join("one", lambda: Priority.READAHEAD)
    second = turns.join("one", lambda: Priority.DEMAND if urgent else Priority.BACKGROUND)
    assert (0.0, math.inf) == (turns.wait_s(first, 0.0), turns.wait_s(second, 0.0))

    urgent = True

    assert (math.inf, 0.0) == (turns.wait_s(first, 0.0), turns.wait_s(second, 0.0))


def test_a_slow_registry_holds_up_no_other() -> None:
    """Who waits for its own registry's limit is passed by the rest, whatever its rank."""
    turns = Turns(NODE, OWN, 0.0)
    slow = turns.join("slow", lambda: Priority.DEMAND)
    turns.draw(slow, 3 * MIB // 4, 0.0)  # the registry's bucket is in debt, the node's is not
    other = turns.join("other", lambda: Priority.BACKGROUND)

    assert turns.wait_s(slow, 0.0) > 0
    assert not turns.wait_s(other, 0.0)


# ---- connections ----


def test_a_registry_has_the_connections_that_it_was_given() -> None:
    """More or less than the others; half of its own while it fails."""
    shares = Shares(LaneCounts(urgent=1, general=2), {"big": LaneCounts(urgent=2, general=6), "one": LaneCounts(0, 1)})

    def room(registry: str, *, urgent: bool) -> int:
        count = 0
        while shares.may_start(registry, urgent_lane=urgent):
            shares.begin(registry, urgent_lane=urgent)
            count += 1
        return count

    assert [(1, 2), (2, 6), (0, 1)] == [
        (room(each, urgent=True), room(each, urgent=False)) for each in ("any", "big", "one")
    ]
    for registry in ("big", "one"):
        shares.failed(registry)
    for _ in range(6):
        shares.end("big", urgent_lane=False)
    assert room("big", urgent=False) == 3
    shares.worked("big")
    assert room("big", urgent=False) == 3


@pytest.mark.parametrize(("own", "most"), [({}, 8), ({"a": 3}, 8), ({"a": 20, "b": 4}, 20)])
def test_there_are_lanes_for_the_registry_that_may_have_most(own: dict[str, int], most: int) -> None:
    """And each has its part of them for readers."""
    settings = FetcherSettings(registries={host: RegistryLimits(connections=each) for host, each in own.items()})

    assert most == settings.most_connections
    assert {scope_of(host): LaneCounts(min(2, each - 1), each - min(2, each - 1)) for host, each in own.items()} == (
        settings.own_lanes
    )


# ---- the fetcher ----


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def limited(root: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[tuple[Rig, Clock]]:
    """A rig whose bytes flow by a clock that stands still."""
    (root / "c").mkdir()
    clock = Clock()
    monkeypatch.setattr("fuse.fetch.transfer.Bandwidth", lambda rate, registries: Bandwidth(rate, registries, clock))
    monkeypatch.setattr(bandwidth, "_LOOK_S", 0.01)
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        rig = Rig(root / "c", registry, **settings)
        try:
            yield rig, clock
        finally:
            rig.lanes.bandwidth.close()
            rig.close()


ALL = {"bytes_per_s": 8 * MIB}
ONE = {"registries": {"registry.example/m": RegistryLimits(bytes_per_s=8 * MIB)}}  # the host of `fetchrig.SCOPE`


@pytest.mark.parametrize("settings", [ALL, ONE], ids=["node", "registry"])
def test_a_reader_waits_for_one_block_of_the_background_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """However many lanes of the background stand in line: the first bytes that may flow are the reader's."""
    with limited(tmp_path, monkeypatch, **settings) as (rig, clock):
        port, seen = rig.mount()
        blob = port.mount.blobs[0]
        rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        # The burst is one block; it leaves no debt, so that one more may be drawn, which does.
        wait_until(lambda: blob.blocks_cached == 2 and rig.engine.statistics()[0] > 3, "the burst to be used up")

        rig.want(port, BLOCKS - 2)
        waiting = rig.lanes.bandwidth._turns._waiting
        wait_until(lambda: [turn for turn in list(waiting.values()) if not turn.rank()], "the reader to stand in line")
        assert 2 == blob.blocks_cached
        clock.now += 1 / 8
        seen.wait_ready(BLOCKS - 2)

        assert expected(BLOCKS - 2) == seen.block(BLOCKS - 2)
        assert 3 == blob.blocks_cached

        def later() -> bool:
            clock.now += 1 / 8
            return blob.complete

        wait_until(later, "the rest")


def test_another_registrys_limit_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit for the node all bytes flow, and nobody looks at a clock."""
    other = {"registries": {"elsewhere.example": RegistryLimits(bytes_per_s=MIB)}}
    with limited(tmp_path, monkeypatch, **other) as (rig, _):
        port, _ = rig.mount()
        rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        wait_until(lambda: port.mount.blobs[0].complete, "all of it, with the clock standing still")


def test_a_registry_gets_no_more_connections_than_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests hang: as many as it may have at once, readers among them, and no more."""
    own = {"registries": {"registry.example/m": RegistryLimits(connections=3)}}
    with limited(tmp_path, monkeypatch, **own) as (rig, _):
        rig.registry.script("blob", "hang", forever=True)
        port, _ = rig.mount()
        rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
        for block in range(10, 40, 6):
            rig.want(port, block)
        wait_until(lambda: rig.engine.statistics()[0] == 3, "three requests")
        lanes = rig.lanes._lanes

        assert len(lanes) == rig.settings.connections + 2 * SPARE
        assert not any(
            rig.engine.dispatch.queue.shares.may_start(port.mount.blobs[0].registry, urgent_lane=urgent)
            for urgent in (True, False)
        )
        rig.registry.clear_scripts()


def test_mounts_that_load_at_once_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one connection their requests alternate from the moment at which both are there, whatever each of them wants."""
    (tmp_path / "c").mkdir()
    monkeypatch.setattr(dispatch, "RUN_LIMITS", (16, 16, 8))  # a few turns each, of blobs that are small
    second = pattern(len(CONTENT), seed=7)
    with FaultyRegistry() as registry:
        registry.add_blob(CONTENT)
        other = registry.add_blob(second)
        rig = Rig(tmp_path / "c", registry, connections=1)
        try:
            rig.engine.dispatch.queue.background_limit = 8
            ports = [rig.mount()[0], rig.mount(other, len(second))[0]]
            rig.registry.script("blob", "hang ok", forever=True)  # until both have wished
            for port in ports:
                rig.want(port, 0, BLOCKS, Priority.BACKGROUND)
            wait_until(lambda: rig.engine.statistics()[0] == 1, "the first request")
            rig.registry.release()
            wait_until(lambda: all(port.mount.blobs[0].complete for port in ports), "both")
            log = registry.requests("blob")
        finally:
            rig.close()
    asked = [entry.request.path.rpartition("/")[2] for entry in log if entry.status == 206]
    digests = {str(DIGEST), str(other)}
    assert digests == set(asked)
    begin = max(asked.index(digest) for digest in digests)
    end = len(asked) - max(asked[::-1].index(digest) for digest in digests)
    both = asked[begin:end]
    assert len(both) >= 4
    assert not [pair for pair in itertools.pairwise(both) if len(set(pair)) == 1]
