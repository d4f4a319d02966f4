"""What is under way at a target: who does the work, who shares its outcome, who waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from csi.operations import Operation, Operations
from fuse.errors import Cancelled, InProgress, NotFound, WeightlessError


class Work:
    """Goes on until it is told how to end."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.end: Future[str] = Future()
        self.times = 0

    def __call__(self, operation: Operation[str]) -> str:
        self.times += 1
        self.entered.set()
        try:
            return self.end.result(10)
        finally:
            operation.check()


class Request:
    """Equal to all others; tells when it was compared: from then on, whoever asked shares the outcome."""

    def __init__(self) -> None:
        self.compared = threading.Event()

    def __eq__(self, _other: object) -> bool:
        self.compared.set()
        return True

    def __hash__(self) -> int:
        return 0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def operations() -> Operations[str]:
    return Operations()


def joined(pool: ThreadPoolExecutor, operations: Operations[str], work: Work) -> list[Future[str]]:
    """One that does the work, and one that has joined it."""
    request = Request()
    first = pool.submit(operations.run, Operation("create", "v", request), "target", work)
    assert work.entered.wait(5)
    second = pool.submit(operations.run, Operation("create", "v", request), "target", work)
    assert request.compared.wait(5)
    return [first, second]


def test_an_equal_operation_shares_what_was_found_out(pool: ThreadPoolExecutor, operations: Operations[str]) -> None:
    """The work is done once."""
    work = Work()
    both = joined(pool, operations, work)
    work.end.set_result("found")
    assert ["found", "found"] == [each.result(5) for each in both]
    assert (1, 0) == (work.times, operations.count())


@pytest.mark.parametrize(
    ("ending", "kind", "words"),
    [(NotFound("no such model"), NotFound, "no such model"), (ValueError("hunter2"), WeightlessError, "unexpectedly")],
)
def test_an_equal_operation_shares_how_it_failed(
    pool: ThreadPoolExecutor,
    operations: Operations[str],
    ending: Exception,
    kind: type[WeightlessError],
    words: str,
) -> None:
    """As an error of its own, with nothing of what was not foreseen."""
    work = Work()
    first, second = joined(pool, operations, work)
    work.end.set_exception(ending)
    error = second.exception(5)
    assert kind is type(error)
    assert words in str(error)
    assert "hunter2" not in str(error)
    assert ending is first.exception(5) is not error
    assert (1, 0) == (work.times, operations.count())


def test_who_cannot_wait_is_told_so(pool: ThreadPoolExecutor, operations: Operations[str]) -> None:
    """An equal operation after its time, another one at once."""
    work = Work()
    first, _ = joined(pool, operations, work)
    with pytest.raises(InProgress, match="still under way"):
        operations.run(Operation("create", "v", Request()), "target", work, limit_s=0.01)
    with pytest.raises(InProgress, match=r"different operation \(create\)"):
        operations.run(Operation("other", "v", Request()), "target", work)
    work.end.set_result("found")
    assert "found" == first.result(5)


def test_an_end_starts_nothing_and_waits_for_what_is_under_way(
    pool: ThreadPoolExecutor, operations: Operations[str]
) -> None:
    """What is cancelled may need its time; an unpublish is let to its end."""
    publish, unpublish = Work(), Work()
    ending = [
        pool.submit(operations.run, Operation("publish", "v", 1), "a", publish),
        pool.submit(operations.run, Operation("unpublish", "w", 2), "b", unpublish),
    ]
    assert publish.entered.wait(5)
    assert unpublish.entered.wait(5)
    assert not operations.close(0.01)
    publish.end.set_result("late")
    unpublish.end.set_result("done")
    assert operations.close(5)
    assert isinstance(ending[0].exception(5), Cancelled)
    assert "done" == ending[1].result(5)
    with pytest.raises(Cancelled):
        operations.run(Operation("publish", "v", 1), "c", Work())
