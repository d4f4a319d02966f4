"""When the background leaves the link to readers: by the clock of the caller, and by who waits for whom."""

from __future__ import annotations

from fuse.fetch.courtesy import (
    ANSWER_S,
    BEHIND_BYTES,
    BLOCKS_A_LEAVE,
    LEAVES,
    LINGER_LEAST_S,
    LINGER_MOST_S,
    Courtesy,
)


def test_the_link_is_nobodys_before_a_reader_asks() -> None:
    """Without readers the background has all of it."""
    assert Courtesy().until_s(5.0) == 0.0


def test_a_reader_that_reads_on_keeps_the_link() -> None:
    """From its request until some time after its block, again with each block: the pause between two is the reader's as well."""
    courtesy = Courtesy()
    courtesy.asked(10.0)
    assert courtesy.until_s(10.01) == 10.0 + ANSWER_S
    courtesy.served(10.02, 0.01)

    assert 10.03 < courtesy.until_s(10.03) < 10.0 + ANSWER_S
    assert courtesy.until_s(10.05) == 0.0


def test_the_pause_that_is_granted_follows_what_a_block_takes() -> None:
    """Neither for ever on a link that drips, nor nothing on a quick one."""
    slow, quick = Courtesy(), Courtesy()
    slow.served(10.0, 8.0)
    quick.served(10.0, 0.00001)

    assert slow.until_s(10.0) == 10.0 + LINGER_MOST_S
    assert quick.until_s(10.0) == 10.0 + LINGER_LEAST_S


def test_a_quick_block_does_not_end_what_a_slow_one_was_granted() -> None:
    """Of several requests for one reader the last to come is not the measure."""
    courtesy = Courtesy()
    courtesy.served(10.0, 0.02)
    courtesy.served(10.001, 0.001)

    assert courtesy.until_s(10.03) > 10.03


def test_a_registry_that_hangs_does_not_keep_the_link() -> None:
    """A request that is not answered is worth a moment."""
    courtesy = Courtesy()
    courtesy.asked(10.0)

    assert courtesy.until_s(10.0 + ANSWER_S) == 0.0


def test_where_bytes_wait_for_the_lanes_the_background_goes_on() -> None:
    """The processor is what is short then; and the link again when lanes wait for bytes."""
    courtesy = Courtesy()
    for _ in range(30):
        courtesy.came(BEHIND_BYTES)
    courtesy.asked(10.0)
    assert courtesy.until_s(10.0) == 0.0
    for _ in range(30):
        courtesy.came(0)

    assert courtesy.until_s(10.0) > 10.0


def test_what_gathered_while_a_lane_was_away_says_nothing() -> None:
    """A socket's buffer that filled during a rest is not taken for a fast link."""
    courtesy = Courtesy()
    for _ in range(30):
        courtesy.came(None)
    courtesy.asked(10.0)

    assert courtesy.until_s(10.0) > 10.0


def test_leaving_requests_has_to_be_earned() -> None:
    """What is lost with them stays a small part of what comes: a few at first, then one for so many blocks."""
    courtesy = Courtesy()
    assert [courtesy.may_leave() for _ in range(LEAVES + 2)] == [True] * LEAVES + [False] * 2
    for _ in range(BLOCKS_A_LEAVE):
        courtesy.came(0)

    assert [courtesy.may_leave() for _ in range(2)] == [True, False]
