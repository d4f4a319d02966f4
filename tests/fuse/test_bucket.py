"""A bucket against what it promises, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.bucket import Bucket

rates = st.floats(0.1, 1e9)
bursts = st.floats(0, 1e9)
steps = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e8)), min_size=1, max_size=60)


@given(rates, bursts, steps)
def test_no_more_is_drawn_in_any_time_than_rate_and_burst_allow(
    rate: float, burst: float, script: list[tuple[float, float]]
) -> None:
    """Over every stretch of the script, whoever draws only when it may; the last amount may be of any size."""
    bucket, now = Bucket(rate, burst, 0.0), 0.0
    drawn: list[tuple[float, float]] = []
    for pause, amount in script:
        now += pause
        if not bucket.wait_s(now):
            bucket.draw(amount, now)
            drawn.append((now, amount))

    for start in range(len(drawn)):
        total = 0.0
        for end in range(start, len(drawn)):
            allowed = burst + rate * (drawn[end][0] - drawn[start][0])
            assert total <= allowed * (1 + 1e-9) + 1e-6  # before the last amount
            total += drawn[end][1]


@given(rates, bursts, steps)
def test_who_waits_as_long_as_it_is_told_may_draw(rate: float, burst: float, script: list[tuple[float, float]]) -> None:
    """And waits no longer than the rate needs for what was drawn before."""
    bucket, now, before = Bucket(rate, burst, 0.0), 0.0, 0.0
    for _, amount in script:
        now += bucket.wait_s(now)
        assert now == pytest.approx(max(0.0, (before - burst) / rate), rel=1e-6, abs=1e-3)
        bucket.draw(amount, now)
        before += amount


@given(rates, bursts, st.floats(1, 1e8))
def test_a_debt_is_paid_at_the_rate(rate: float, burst: float, amount: float) -> None:
    """However it was made: by one large amount, or by one who may not wait."""
    bucket = Bucket(rate, burst, 0.0)
    bucket.draw(burst + amount, 0.0)
    bucket.draw(amount, 0.0)

    assert bucket.wait_s(0.0) == pytest.approx(2 * amount / rate, rel=1e-6)
    assert bucket.wait_s(amount / rate) == pytest.approx(amount / rate, rel=1e-6)


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    """Threads read the clock before they get the lock: their times come in any order."""
    bucket = Bucket(1.0, 0.0, 10.0)
    bucket.draw(5, 10.0)

    assert [bucket.wait_s(now) for now in (10.0, 4.0, 10.0, 12.0, 11.0)] == [5, 5, 5, 3, 3]


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, -1)])
def test_nonsense_is_refused(rate: float, burst: float) -> None:
    """A rate of 0 would be a wait for ever."""
    with pytest.raises(ValueError, match="rate above 0"):
        Bucket(rate, burst, 0.0)
