"""When mirrors are asked, and how often the registry is in their place, on a clock of the test's own."""

from __future__ import annotations

import pytest

from fuse.errors import NotFound, Unavailable
from fuse.registry.access import Endpoint
from fuse.registry.health import CROWDED_MOST_S, CROWDED_S, DETOURS_PER_S, MIRROR_PAUSE_S, Health, Later

MIRROR = Endpoint(url="http://127.0.0.1:4001/v2", named=True)
ORIGIN = Endpoint(url="https://registry.test/v2", origin=True)
DEAD = Unavailable("no answer")
BUSY = Unavailable("429", answered=True)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def later_of(health: Health) -> float | None:
    """How long what is fetched ahead has to wait for the mirror's crowd."""
    try:
        health.check_crowd(MIRROR)
    except Later as later:
        return later.after_s
    return None


def test_after_a_pause_one_request_tries_a_mirror_for_all(health: Health, clock: Clock) -> None:
    """Not all lanes at once: its time-out is paid by one of them, each time."""
    health.note(MIRROR, DEAD)
    assert not health.may_ask(MIRROR)

    clock.now += MIRROR_PAUSE_S
    assert [True, False, False] == [health.may_ask(MIRROR) for _ in range(3)]

    health.note(MIRROR, DEAD)
    clock.now += MIRROR_PAUSE_S
    assert health.may_ask(MIRROR)
    health.note_success(MIRROR)
    assert [True, True] == [health.may_ask(MIRROR) for _ in range(2)]


def test_who_does_not_come_back_from_a_trial_leaves_it_to_another(health: Health, clock: Clock) -> None:
    """A trial that nobody reports (its mount ended) is made again after the same pause."""
    health.note(MIRROR, DEAD)
    clock.now += MIRROR_PAUSE_S
    assert health.may_ask(MIRROR)

    clock.now += MIRROR_PAUSE_S
    assert health.may_ask(MIRROR)


def test_a_mirror_that_does_not_have_it_is_in_good_health(health: Health, clock: Clock) -> None:
    """404 is an answer, also to the one that tries it after a pause."""
    health.note(MIRROR, DEAD)
    clock.now += MIRROR_PAUSE_S
    assert health.may_ask(MIRROR)
    health.note(MIRROR, NotFound("blob unknown"))

    assert health.may_ask(MIRROR)


def test_the_origin_is_always_asked(health: Health) -> None:
    """There is nothing behind it."""
    for error in (DEAD, BUSY):
        health.note(ORIGIN, error)
        assert health.may_ask(ORIGIN)


@pytest.mark.parametrize(("asked", "expected"), [(None, CROWDED_S), (0.25, 0.25), (3600.0, 1.0)])
def test_a_crowded_mirror_puts_off_what_is_ahead(health: Health, asked: float | None, expected: float) -> None:
    """For as long as it says, and is looked at again after a second at most, for it may be forgotten sooner."""
    health.note(MIRROR, Unavailable("429", answered=True, retry_after_s=asked))

    assert not health.may_ask(MIRROR)
    assert expected == later_of(health)


def test_a_dead_mirror_puts_off_nothing(health: Health) -> None:
    """The way round it is bounded by another rule."""
    health.note(MIRROR, DEAD)

    assert later_of(health) is None


def test_a_crowd_that_does_not_end_counts_as_failure(health: Health, clock: Clock) -> None:
    """Else a model that nobody reads would never come."""
    began = clock.now
    while clock.now - began <= CROWDED_MOST_S:
        health.may_ask(MIRROR)
        health.note(MIRROR, BUSY)
        assert later_of(health) is not None
        clock.now += CROWDED_S
    assert later_of(health) is None
    health.note(MIRROR, BUSY)
    assert later_of(health) is None

    health.note_success(MIRROR)
    health.note(MIRROR, BUSY)
    assert later_of(health) is not None


def test_an_old_crowd_does_not_count(health: Health, clock: Clock) -> None:
    """Nobody asked for an hour: what it said then says nothing of how long it is crowded now."""
    health.note(MIRROR, BUSY)
    clock.now += 3600
    health.note(MIRROR, BUSY)

    assert later_of(health) is not None


def test_the_way_round_is_narrow(health: Health, clock: Clock) -> None:
    """However many ask, in ten seconds the registry gets what ten seconds allow, and a first second's worth."""
    taken, waits = 0, []
    for _ in range(10 * 20):
        for _ in range(5):
            try:
                health.take_detour()
                taken += 1
            except Later as later:
                waits.append(later.after_s)
        clock.now += 0.05

    assert DETOURS_PER_S * 10 <= taken <= DETOURS_PER_S * 11 + 1
    assert 0 < min(waits) <= max(waits) <= 1 / DETOURS_PER_S + 1e-9


def test_who_counts_is_told_of_each_failure() -> None:
    """Whatever it is, with its kind; success is none."""
    health, told = Health(lambda: 0.0), []
    health.on_failure = lambda endpoint, kind: told.append((endpoint.origin, kind))
    health.note(MIRROR, NotFound("blob unknown"))
    health.note(ORIGIN, DEAD)
    health.note_failure(MIRROR)
    health.note_success(MIRROR)
    assert told == [(False, "not_found"), (True, "unavailable"), (False, "unavailable")]
