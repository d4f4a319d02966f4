"""Who is taken for dead, and who only waits; and how often something died. Pure."""

from __future__ import annotations

from fuse.mounting.pulse import Look, Pulse
from fuse.mounting.restarts import History


def looks(*verdicts: str, of: Pulse, **look: object) -> None:
    """Looks as often as there are verdicts, and sees these."""
    assert [of.look(Look(**{"answered": True, "waiting": 1, **look})) for _ in verdicts] == list(verdicts)


def test_nothing_waiting_is_idle_whatever_else() -> None:
    """A stopped worker that nobody needs is left alone."""
    looks("idle", "idle", "idle", of=Pulse(silent_looks=2), answered=False, waiting=0)


def test_silence_counts_while_requests_wait() -> None:
    """One look with an answer starts it over, and so does one at which nothing waits."""
    pulse = Pulse(silent_looks=3)
    looks("busy", "busy", of=pulse, answered=False)
    looks("busy", of=pulse, reads=0, reads_waiting=1)
    looks("busy", "busy", of=pulse, answered=False)
    looks("idle", of=pulse, waiting=0)
    looks("busy", "busy", "silent", "silent", of=pulse, answered=False)


def test_reads_that_wait_for_a_registry_are_no_wedge() -> None:
    """However long nothing moves: the worker knows of them."""
    looks(*["busy"] * 100, of=Pulse(stuck_looks=3), reads=7, reads_waiting=2)


def test_requests_of_which_the_worker_knows_nothing_are_one() -> None:
    """It answers, no read waits in it, and the kernel's requests do not move."""
    pulse = Pulse(stuck_looks=3)
    looks("busy", "busy", "busy", "stuck", of=pulse, reads=7, reads_waiting=0)
    looks("busy", of=pulse, reads=8, reads_waiting=0)


def test_without_the_kernels_account_the_worker_is_believed() -> None:
    """Idle when it says that no read waits, having been asked now; what it said earlier does not count."""
    pulse = Pulse(silent_looks=2)
    looks("busy", of=pulse, waiting=None, reads=0, reads_waiting=0)
    looks("busy", of=pulse, waiting=None, reads=1, reads_waiting=1)
    looks("idle", of=pulse, waiting=None, reads=1, reads_waiting=0)
    looks("busy", "idle", "busy", "idle", of=pulse, waiting=None, reads=1, reads_waiting=0)
    looks("busy", "silent", of=pulse, waiting=None, answered=False)


def test_five_deaths_in_a_row_are_a_loop_until_one_serves() -> None:
    """It says how often, why, since when, and the last line; ten seconds of service end it, the count stays."""
    history = History()
    for number in range(5):
        assert history.loop(100.0) is None
        history.started(100.0)
        history.ended(101.0, 1000.0 + number, "was killed by signal 9", "first\nlast\n")
    reason, since = history.loop(101.0) or ("", 0.0)
    assert reason == "5 times in a row: it was killed by signal 9; its last words: last"
    assert since == 1000.0
    history.started(102.0)
    assert history.loop(103.0)
    assert history.loop(112.0) is None
    assert history.ended(113.0, 2000.0, "ended") == 0.0
    assert (history.told.count, history.told.at, history.told.reason) == (6, 2000.0, "ended")
    assert history.loop(113.0) is None
