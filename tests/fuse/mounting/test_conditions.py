"""The words for what is wrong, how long it lasts, what is logged of it, and sums that only grow. No processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fuse.errors import MountFailed, Unavailable, WeightlessError, every_error
from fuse.fetch.protocol import FetcherTotals, MountProgress
from fuse.fetch.tally import CacheRoom
from fuse.mounting import reporting
from fuse.mounting.chronicle import Story
from fuse.mounting.ledger import Ledger
from fuse.mounting.reasons import BY_KIND, Reason, consequence, known, reason_of
from fuse.mounting.restarts import History
from fuse.mounting.status import Health
from fuse.spec import Report

NOON = 1_795_608_003.7  # 2026-11-25T12:00:03Z


@pytest.mark.parametrize("kind", sorted(every_error()))
def test_every_kind_of_error_has_a_reason(kind: str) -> None:
    """A new error class must say which page of the runbook it leads to."""
    assert kind in BY_KIND
    assert reason_of(kind) is not Reason.UNKNOWN


def test_no_reason_stands_for_an_error_that_is_not_there() -> None:
    """A kind that was renamed would silently lose its reason."""
    assert set(BY_KIND) <= set(every_error())


def test_a_newer_peer_may_say_what_we_do_not_know() -> None:
    """Its condition is read, and counts as unknown; an older one's has no code and does too."""
    newer = msgspec.json.decode(
        b'{"state": "degraded", "reason": "w", "since": 1, "reason_code": "comet", "more": 1}', type=Health
    )
    assert newer.cause == ("degraded", Reason.UNKNOWN)
    older = msgspec.json.decode(b'{"state": "broken", "reason": "w", "since": 1.0}', type=Health)
    assert older.cause == ("broken", Reason.UNKNOWN)
    assert known("cache_full") is Reason.CACHE_FULL


def test_a_condition_is_one_sentence() -> None:
    """State, since when, reason, words, and what it means to a reader."""
    health = Health(
        state="degraded",
        reason="registry.example.com: cannot connect",
        reason_code=Reason.REGISTRY_UNAVAILABLE,
        since=NOON,
    )
    assert health.sentence() == (
        "degraded since 2026-11-25T12:00:03Z: registry_unavailable: registry.example.com: cannot connect; "
        "reads wait and go on by themselves"
    )
    assert Health().sentence() == "the volume can be read"
    assert Health(state="broken", reason_code="unmounted").sentence() == (
        f"broken: unmounted: {consequence('broken', 'unmounted')}"
    )


def test_a_loop_says_how_often_and_since_when_it_began() -> None:
    """From the fifth death in a row on, until one has served for ten seconds; then a single death is no loop."""
    history = History()
    for death in range(4):
        history.ended(death, NOON + death, "was killed by signal 9")
    assert history.loop(4) is None
    history.ended(4, NOON + 4, "was killed by signal 9", "first\nno memory\n")
    words = "5 times in a row: it was killed by signal 9; its last words: no memory"
    assert history.loop(5) == (words, NOON)
    history.started(6)
    assert history.loop(15) == (words, NOON)
    assert history.loop(16) is None
    history.ended(30, NOON + 30, "exited")
    assert history.loop(30) is None
    assert (history.told.count, history.told.at) == (6, NOON + 30)


def degraded(code: Reason, since: float, words: str = "") -> Health:
    return Health(state="degraded", reason=words, reason_code=code, since=since)


def test_a_change_is_one_line_with_reason_since_and_duration() -> None:
    """Degraded, the same with other words, healed."""
    story = Story()
    assert story.look(Health(), NOON - 10) == (False, None)
    assert story.look(degraded(Reason.REGISTRY_UNAVAILABLE, NOON, "no route"), NOON + 1) == (
        True,
        {
            "event": "mount_degraded",
            "was": "healthy",
            "reason": "registry_unavailable",
            "since": "2026-11-25T12:00:03Z",
            "words": "no route",
        },
    )
    assert story.look(degraded(Reason.REGISTRY_UNAVAILABLE, NOON, "time-out"), NOON + 2) == (False, None)
    assert story.look(degraded(Reason.REGISTRY_UNAVAILABLE, NOON, "refused"), NOON + 30) == (False, None)
    _, line = story.look(Health(), NOON + 61)
    assert line == {"event": "mount_healed", "was": "degraded", "reason": "registry_unavailable", "duration_s": 61.0}


def test_flicker_is_counted_and_hardly_logged() -> None:
    """A minute of changes each second gives a line in ten seconds, which say how many there were, and end with the truth."""
    story, lines, changes = Story(), [], 0
    for second in range(60):
        health = degraded(Reason.WORKER_REPLACED, NOON + second) if second % 2 == 0 else Health()
        changed, line = story.look(health, NOON + second)
        changes += changed
        lines += [line] if line else []
    for second in range(60, 80):
        _, line = story.look(Health(), NOON + second)
        lines += [line] if line else []
    assert changes == 60
    assert len(lines) <= 8
    assert lines[-1]["event"] == "mount_healed"
    assert sum(line.get("changes", 1) for line in lines) + story.untold == 60


def test_a_broken_mount_is_told_when_it_was_degraded_before() -> None:
    """Each state and reason has its line."""
    story = Story()
    story.look(degraded(Reason.REGISTRY_UNAVAILABLE, NOON), NOON)
    broken = Health(state="broken", reason_code=Reason.CORRUPT_BLOB, since=NOON + 30)
    assert story.look(broken, NOON + 30)[1] == {
        "event": "mount_broken",
        "was": "degraded",
        "reason": "corrupt_blob",
        "since": "2026-11-25T12:00:33Z",
        "words": "",
    }


def report(reads: int) -> Report:
    return Report(id=1, reads=reads, bytes_read=reads * 10, waiting=0, waited_s=reads / 4, open_files=0)


def progress(fetched: int, whole: int | None) -> MountProgress:
    totals = None if whole is None else FetcherTotals(bytes_fetched=whole, requests=whole)
    return MountProgress(
        id=1,
        bytes_cached=0,
        bytes_total=0,
        bytes_fetched=fetched,
        requests=fetched,
        rate_bytes_per_s=0.0,
        verified_blobs=0,
        totals=totals,
    )


def test_a_restarted_worker_takes_nothing_from_the_sums() -> None:
    """Three workers, a late answer among them; the mount's end keeps the sum of all."""
    ledger = Ledger()
    seen = []
    for pid, reads in ((1, 5), (1, 7), (1, 6), (2, 0), (2, 4), (3, 1)):
        ledger.worker_said("m", pid, report(reads))
        seen.append(ledger.all().reads)
    assert seen == [5, 7, 7, 7, 11, 12]
    assert (ledger.of("m").bytes_read, ledger.of("m").waited_s) == (120, 3.0)
    for count in (0, 2, 3):
        ledger.restarted("m", count)
    ledger.forget("m")
    ledger.restarted("m", 1)
    assert ledger.all().restarts == 4
    assert ledger.of("m").reads == 0
    assert ledger.all().reads == 12


def test_bytes_of_shared_blobs_count_once_for_all_and_for_each_mount() -> None:
    """The fetcher's own totals count for the node; one that has none is added up by mounts."""
    ledger = Ledger()
    for mount in ("a", "b"):
        ledger.fetcher_said(mount, 1, progress(100, 120))
    assert (ledger.of("a").bytes_fetched, ledger.all().bytes_fetched) == (100, 120)
    for mount in ("a", "b"):
        ledger.fetcher_said(mount, 2, progress(10, 15))
    assert (ledger.of("b").bytes_fetched, ledger.all().bytes_fetched) == (110, 135)
    ledger.fetcher_said("a", 3, progress(1, None))
    assert ledger.all().requests == 136


def test_what_a_fetcher_counts_outlives_it() -> None:
    """Three fetchers, a late answer among them: counts only grow; of the disk the last word counts."""
    ledger = Ledger()
    seen = []
    for pid, count in ((1, 5), (1, 7), (1, 6), (1, 8), (2, 0), (2, 4), (3, 1)):
        counts = {"wrong_answers": count} if count else {}
        room = CacheRoom(used_bytes=count, quota_bytes=0, disk_bytes=10, disk_free_bytes=10 - count)
        ledger.fetcher_counted(pid, FetcherTotals(bytes_fetched=count, counts=counts, cache=room))
        seen.append(ledger.counts().get("wrong_answers", 0))
    assert seen == [5, 7, 7, 8, 8, 12, 13]
    assert ledger.all().bytes_fetched == 13
    assert ledger.cache == room


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (MountFailed("the worker was killed by signal 9 before it served"), Reason.WORKER_REPLACED),
        (Unavailable("the fetcher is gone"), Reason.FETCHER_DOWN),
    ],
)
def test_a_worker_that_could_not_be_started_is_not_the_fetchers_fault(trouble: WeightlessError, reason: Reason) -> None:
    """While the next one is being started, the last trouble still stands."""
    mount: Any = SimpleNamespace(trouble=trouble, trouble_since=NOON, attached_to=None)
    fetcher: Any = SimpleNamespace(trouble=None, history=History())
    health = reporting._of_fetcher(mount, fetcher)

    assert health is not None
    assert health.reason_code == reason
