"""Background work side by side: what hangs holds up its own group alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from csi.lanes import Lanes
from tests.support.waiting import until


class Hanging:
    """Pieces of work that go on until they are let go."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun: list[str] = []
        self.done: list[str] = []
        self._go_on = threading.Event()

    def work(self, name: str, *, hangs: bool = True) -> Callable[[], None]:
        def work() -> None:
            with self.lock:
                self.begun.append(name)
            if hangs:
                assert self._go_on.wait(10)
            with self.lock:
                self.done.append(name)

        return work

    def let_go(self) -> None:
        self._go_on.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.let_go()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lane"]


def test_what_hangs_leaves_room_for_other_groups(hanging: Hanging) -> None:
    """Two of its pieces are under way, and however many wait: another group's are done meanwhile."""
    lanes = Lanes("lane", at_once=3, of_one_group=2)
    for number in range(5):
        assert lanes.offer(f"a{number}", "a", hanging.work(f"a{number}"))
    for number in range(3):
        assert lanes.offer(f"b{number}", "b", hanging.work(f"b{number}", hangs=False))
    until(lambda: hanging.done == ["b0", "b1", "b2"], "the others are done")
    assert ["a0", "a1"] == [name for name in hanging.begun if name[0] == "a"]
    hanging.let_go()
    until(lambda: len(hanging.done) == 8, "the rest is done")
    until(lambda: not threads(), "no thread is left for nothing to do")
    lanes.close()


def test_no_more_than_its_number_are_under_way(hanging: Hanging) -> None:
    """Of however many groups."""
    lanes = Lanes("lane", at_once=3, of_one_group=2)
    for number in range(6):
        lanes.offer(f"{number}", f"group-{number}", hanging.work(f"{number}"))
    until(lambda: len(hanging.begun) == 3, "three have begun")
    assert 3 == len(threads())
    hanging.let_go()
    until(lambda: len(hanging.done) == 6, "all are done")
    assert "012" == "".join(sorted(hanging.begun[:3]))  # first come, first served
    lanes.close()


def test_a_key_is_worked_on_once_at_a_time(hanging: Hanging) -> None:
    """Neither beside itself nor behind itself; once it is done it may come again, also if it failed."""
    lanes = Lanes("lane", at_once=1)

    def fail() -> None:
        hanging.work("failing", hangs=False)()
        raise ValueError

    assert lanes.offer("first", "", hanging.work("first"))
    assert lanes.offer("second", "", fail)
    for key in ("first", "second"):
        assert not lanes.offer(key, "other", hanging.work("again"))
    hanging.let_go()
    until(lambda: lanes.offer("second", "", hanging.work("second")), "it may come again")
    until(lambda: hanging.done == ["first", "failing", "second"], "all are done")
    lanes.close()


def test_without_a_thread_nothing_is_taken(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who offers is told, and may offer it again; what is under way goes on."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lanes = Lanes("lane", at_once=2, of_one_group=2)
    lanes.offer("first", "", hanging.work("first"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert not lanes.offer("second", "", hanging.work("second"))
    assert lanes.offer("second", "", hanging.work("second"))
    until(lambda: len(hanging.begun) == 2, "both are under way")
    hanging.let_go()
    until(lambda: len(hanging.done) == 2, "both are done")
    lanes.close()


def test_close_gives_up_what_waits_and_waits_for_the_rest(hanging: Hanging) -> None:
    """Then nothing begins any more."""
    lanes = Lanes("lane", at_once=1)
    lanes.offer("first", "", hanging.work("first"))
    lanes.offer("second", "", hanging.work("second"))
    until(lambda: hanging.begun, "the first has begun")
    closing = threading.Thread(target=lanes.close)
    closing.start()
    later = itertools.count()
    until(lambda: not lanes.offer(f"later-{next(later)}", "", hanging.work("later")), "it closes")
    assert closing.is_alive()
    hanging.let_go()
    closing.join(10)
    assert ["first"] == hanging.done
    assert [] == threads()
