"""The table of waits: who is woken, who is asked for, and that nothing stays behind."""

from __future__ import annotations

from fuse.errors import NotFound
from fuse.worker.waiters import WaitTable


def test_block_that_is_awaited_already_is_not_asked_again() -> None:
    """Two reads of one block are one request."""
    table = WaitTable()
    _, first = table.add(0, [(3, 2)])
    _, second = table.add(0, [(2, 4)])

    assert [(3, 2)] == first
    assert [(2, 1), (5, 1)] == second


def test_wait_ends_when_its_last_block_has_come() -> None:
    """In any order, in any grouping."""
    table = WaitTable()
    wait, _ = table.add(1, [(0, 1), (8, 2)])
    table.arrived(1, 9, 100)
    table.arrived(1, 0, 1)
    assert not wait.done.is_set()
    table.arrived(1, 0, 1000)

    assert wait.done.is_set()
    assert len(table) == 0


def test_loans_reach_every_waiter() -> None:
    """One lent block serves all reads that wait for it."""
    table = WaitTable()
    waits = [table.add(0, [(5, 1)])[0] for _ in range(3)]
    table.lent(0, 5, b"bytes")

    assert all(wait.done.is_set() and wait.loans == {5: b"bytes"} for wait in waits)


def test_failure_ends_all_waits_that_touch_it_and_no_other() -> None:
    """A wait for several blocks is over when one of them cannot be had."""
    table = WaitTable()
    touched, _ = table.add(0, [(0, 4)])
    other, _ = table.add(0, [(2, 1)])
    error = NotFound("gone")
    table.failed(0, 3, 1, error)

    assert touched.done.is_set()
    assert touched.error is error
    assert not other.done.is_set()
    assert len(table) == 1
    table.failed(0, 0, 0, error)
    assert other.error is error
    assert len(table) == 0


def test_given_up_wait_leaves_nothing() -> None:
    """A cancelled read is forgotten, one that shares its blocks is not."""
    table = WaitTable()
    gone, _ = table.add(0, [(0, 3)])
    stays, _ = table.add(0, [(2, 1)])
    table.discard(gone)
    table.discard(gone)

    assert [(0, (2, 1))] == list(table.outstanding())
    table.discard(stays)
    assert len(table) == 0


def test_outstanding_is_told_in_runs() -> None:
    """What a new fetcher is asked is no more messages than needed."""
    table = WaitTable()
    table.add(1, [(9, 1)])
    table.add(1, [(7, 2)])
    table.add(0, [(0, 2), (5, 1)])

    assert [(0, (0, 2)), (0, (5, 1)), (1, (7, 3))] == sorted(table.outstanding())
