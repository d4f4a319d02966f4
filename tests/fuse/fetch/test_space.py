"""Room in the cache against a model: a dictionary of blobs, their sizes and when they were used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.cache.quota import Candidate, Disk, Limits
from fuse.cache.store import CacheStore
from fuse.fetch.space import Space

QUOTA, DISK, FLOOR = 100, 150, 0.1


class FakeStore:
    """What `Space` asks of a store."""

    def __init__(self) -> None:
        self.blobs: dict[str, list[float]] = {}
        """Bytes on the disk and time of last use, by name."""
        self.others = 0
        self.evicted: list[str] = []

    def used_bytes(self) -> int:
        return int(sum(size for size, _ in self.blobs.values()))

    def candidates(self, pinned: frozenset[str]) -> list[Candidate]:
        return [
            Candidate(name=name, disk_bytes=int(size), used_at=used, pinned=name in pinned)
            for name, (size, used) in self.blobs.items()
        ]

    def evict(self, candidate: Candidate) -> None:
        self.evicted.append(candidate.name)
        del self.blobs[candidate.name]

    def disk(self) -> Disk:
        return Disk(total_bytes=DISK, free_bytes=max(0, DISK - self.others - self.used_bytes()))


operations = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "write", "hold", "let go", "pin", "others")),
        st.sampled_from("abcdefgh"),
        st.integers(1, 60),
        st.integers(0, 60),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(operations)
def test_quota_floor_and_pins_hold_whatever_is_written(steps: Sequence[tuple[str, str, int, int]]) -> None:
    """Nothing held or pinned goes; who goes was used less recently than all that could have gone; room granted is room there."""
    store = FakeStore()
    held: set[str] = set()
    pinned: set[str] = set()
    limits = Limits(quota_bytes=QUOTA, free_space_fraction=FLOOR)
    space = Space(cast("CacheStore", cast("Any", store)), limits, lambda: frozenset(held | pinned))
    for now, (operation, name, wanted, least) in enumerate(steps):
        if operation == "hold":
            held.add(name)
            if name in store.blobs:
                store.blobs[name][1] = now
        elif operation == "let go":
            held.discard(name)
        elif operation == "pin":
            pinned ^= {name}
        elif operation == "others":
            store.others = least
        else:
            held.add(name)  # who writes holds
            before = {name: list(blob) for name, blob in store.blobs.items()}
            store.evicted.clear()
            granted = space.reserve(wanted, least=least)
            assert granted == 0 or granted >= min(least, wanted)
            assert granted <= wanted
            assert not (held | pinned) & set(store.evicted)
            could = sorted((used, name) for name, (_, used) in before.items() if name not in held | pinned)
            assert store.evicted == [name for _, name in could[: len(store.evicted)]]
            if granted:
                assert store.used_bytes() + granted <= QUOTA
                assert DISK - store.others - store.used_bytes() - granted >= int(DISK * FLOOR)
            elif least <= wanted <= QUOTA:
                # Nothing that could have gone is left.
                assert len(store.evicted) == len(could) or not could
            size = store.blobs.setdefault(name, [0, now])
            size[0] += granted
            size[1] = now
            space.settle(granted, granted)
            assert space.used_bytes == store.used_bytes()
            if wanted % 2:
                held.discard(name)


def test_free_room_is_taken_without_evicting_anybody() -> None:
    """What may be there or not takes what is left over: less than the quota, and nothing that others were promised."""
    store = FakeStore()
    store.blobs["a"] = [60, 0]
    limits = Limits(quota_bytes=QUOTA, free_space_fraction=FLOOR)
    space = Space(cast("CacheStore", cast("Any", store)), limits, frozenset)
    assert [True, True, False] == [space.has_free(wanted) for wanted in (0, 40, 41)]
    assert not space.take_free(41)
    assert 30 == space.reserve(30, least=30)
    assert [False, True, False] == [space.take_free(wanted) for wanted in (11, 10, 1)]
    assert [] == store.evicted
