"""Objects by name, and the arithmetic of room."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuse.cache.objects import ObjectStore
from fuse.cache.pins import Pins, mount_pin
from fuse.cache.quota import Candidate, Disk, Limits, shortage, victims


def test_an_object_is_whole_or_absent(tmp_path: Path) -> None:
    """A torn object is forgotten, never returned."""
    store = ObjectStore(tmp_path)
    store.put("tables", "sha256:ab", b"content")
    path = tmp_path / "tables" / "sha256-ab"

    assert store.get("tables", "sha256:ab") == b"content"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.get("tables", "sha256:ab") is None
    assert not path.exists()
    assert store.get("tables", "never") is None


def test_an_object_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    """Remembering is a favour: where the disk refuses, the caller goes on."""
    (tmp_path / "tables").write_text("a file where a directory should be")
    store = ObjectStore(tmp_path)
    store.put("tables", "x", b"content")

    assert store.get("tables", "x") is None


@pytest.mark.parametrize("key", ["../x", "", ".hidden", "a/b", "x" * 300])
def test_keys_cannot_leave_the_store(tmp_path: Path, key: str) -> None:
    """A key is a file name, nothing else."""
    with pytest.raises(ValueError, match="cannot name"):
        ObjectStore(tmp_path).get("tables", key)


@settings(max_examples=40, deadline=None)
@example([("put", number, 0) for number in range(10)])
@example([("put", number, 60) for number in range(8)] + [("get", 6, 0), ("put", 0, 60), ("put", 1, 60), ("put", 2, 60)])
@given(
    st.lists(
        st.tuples(st.sampled_from(("put", "put", "get", "remove", "restart")), st.integers(0, 9), st.integers(0, 60)),
        max_size=40,
    )
)
def test_what_is_remembered_is_bounded_and_the_last_used_stays(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int]]
) -> None:
    """Against a dictionary: what is there is what was put last; never more than the bounds; the newest is always there."""
    root = tmp_path_factory.mktemp("o")
    store = ObjectStore(root, most_bytes=300, most_files=6)
    model: dict[int, bytes] = {}
    for operation, number, length in operations:
        key = f"key-{number}"
        if operation == "put":
            model[number] = bytes([number]) * length
            store.put("tables", key, model[number])
            assert store.get("tables", key) == model[number]
        elif operation == "remove":
            store.remove("tables", key)
            model.pop(number, None)
        elif operation == "restart":
            (root / "tables").mkdir(exist_ok=True)
            (root / "tables" / ".left.1.2").write_bytes(bytes(1000))
            store = ObjectStore(root, most_bytes=300, most_files=6)
        else:
            assert store.get("tables", key) in (None, model.get(number))
        kept = [path for path in root.rglob("*") if path.is_file()]
        assert len(kept) <= 6
        assert sum(path.stat().st_size for path in kept) <= 300


def test_pins_are_kept_whatever_is_forgotten(tmp_path: Path) -> None:
    """A pin is there for the next process, is never pruned, and two pins of one blob are two."""
    store = ObjectStore(tmp_path, most_bytes=100, most_files=2)
    pins = Pins(store)
    pins.add("a", ["x", "y"])
    pins.add("b", ["y"])
    for number in range(20):
        store.put("tables", f"key-{number}", bytes(50))
    again = Pins(ObjectStore(tmp_path, most_bytes=100, most_files=2))
    assert again.blobs == {"x", "y"}
    assert again.names("y") == ("a", "b")
    assert again.remove("a")
    assert not again.remove("a")
    assert Pins(store).blobs == {"y"}


def test_pins_of_mounts_last_as_long_as_the_machine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mount outlives the kernel: what pinned its blobs would keep them for ever."""
    store = ObjectStore(tmp_path)
    pins = Pins(store)
    pins.add(mount_pin("m1"), ["x"])
    pins.add("by hand", ["y"])
    assert [(True, ()), (False, ("by hand",))] == [(pins.is_mounted(blob), pins.names(blob)) for blob in ("x", "y")]
    assert {"x", "y"} == Pins(store).blobs
    monkeypatch.setattr("fuse.cache.pins._boot_id", lambda: "another run")
    assert {"y"} == Pins(store).blobs
    monkeypatch.undo()
    assert {"y"} == Pins(store).blobs


candidates = st.lists(
    st.builds(
        Candidate,
        name=st.text("abc", min_size=1),
        disk_bytes=st.integers(0, 100),
        used_at=st.floats(0, 10),
        pinned=st.booleans(),
        rejected=st.booleans(),
    ),
    max_size=12,
)


@given(candidates, st.integers(0, 300))
def test_eviction_takes_enough_in_order_and_nothing_pinned(found: list[Candidate], lacking: int) -> None:
    """Rejected first, then least recently used; no more than needed; never what is held."""
    chosen = victims(found, lacking)
    left = [c for c in found if not c.pinned and c not in chosen]

    assert not any(c.pinned for c in chosen)
    assert sum(c.disk_bytes for c in chosen) >= lacking or not left
    assert not chosen or sum(c.disk_bytes for c in chosen[:-1]) < lacking
    for kept in left:
        assert all((not c.rejected, c.used_at) <= (not kept.rejected, kept.used_at) for c in chosen)


@given(st.integers(0, 50), st.integers(0, 100), st.integers(0, 100), st.integers(0, 60))
def test_what_shortage_names_is_exactly_what_must_go(quota: int, used: int, free: int, wanted: int) -> None:
    """Having freed so much, quota and floor hold after the write; with one byte less they do not."""
    limits = Limits(quota_bytes=quota, free_space_fraction=0.1)
    disk = Disk(total_bytes=200, free_bytes=free)
    lacking = shortage(limits, disk, used_bytes=used, wanted_bytes=wanted)

    def fits(freed: int) -> bool:
        return (not quota or used - freed + wanted <= quota) and free + freed - wanted >= 20

    assert fits(lacking)
    assert lacking == 0 or not fits(lacking - 1)


@pytest.mark.parametrize("kind", ["manifests", "tables", "offsets", "chunks", "proofs"])
def test_all_that_can_be_had_again_is_bounded(tmp_path: Path, kind: str) -> None:
    """The newest of each kind is there, and no more than the bound."""
    store = ObjectStore(tmp_path, most_bytes=600, most_files=6)
    for number in range(20):
        store.put(kind, f"key-{number}", bytes(50))
    assert store.get(kind, "key-19") == bytes(50)
    assert len(store.keys(kind)) <= 6
