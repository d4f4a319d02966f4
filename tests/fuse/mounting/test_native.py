"""What is kept of a native mount, and taken away with it. Real mounts; the fetcher only pins, so it is played."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuse.errors import Conflict, MountFailed, NotFound, Unavailable
from fuse.fetch.protocol import Whole
from fuse.filesystem import table as inode_table
from fuse.filesystem.table import Artifact, Blob, Node, Table, View
from fuse.mounting import device, native
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.native import VERSION, NativeMounts
from fuse.mounting.status import MountStatus
from fuse.mounting.values import HolderSettings, ResolvedArtifact
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(30)]

DIGEST = "sha256:" + "a" * 64
CONTENT = inode_table.encode(
    Table(
        artifacts=(Artifact(digest=DIGEST, media_type="model"),),
        blobs=(Blob(DIGEST, 10, "type"),),
        nodes=(Node(1, "", "d", 0o555, 0), Node(1, "file", "f", 0o444, 0, 10, 0, 0)),
    )
)
ARTIFACT = ResolvedArtifact(
    reference=f"registry.example/m@{DIGEST}",
    digest=DIGEST,
    media_type="model",
    view=View(),
    table="",
    content=CONTENT,
    bytes_total=10,
    files=1,
    native=True,
)


class Fetcher:
    """Pins, and says no when it is told to."""

    def __init__(self) -> None:
        self.pins: set[str] = set()
        self.away = False
        self.whole = True

    def cache_pin_whole(self, mount_id: str, registry: str, content: bytes) -> Whole:
        assert (registry, content) == ("registry.example", CONTENT)
        if not self.whole:
            raise NotFound("not all of it", where=mount_id)
        self.pins.add(f"mount:{mount_id}")
        return Whole(id=0, pin=f"mount:{mount_id}", names=("sha256/blob.data",))

    def cache_unpin(self, names: tuple[str, ...]) -> None:
        if self.away:
            raise Unavailable("no fetcher", where="here")
        self.pins -= set(names)


class Here:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "mount"
        self.path.mkdir()
        self.run = root / "run"
        self.run.mkdir()
        (root / "cache" / "blobs" / "sha256").mkdir(parents=True)
        (root / "cache" / "blobs" / "sha256" / "blob.data").write_bytes(b"0123456789")
        self.fetcher = Fetcher()
        self.gone: list[MountStatus] = []
        self.open: list[NativeMounts] = []

    def mounts(self) -> NativeMounts:
        made = NativeMounts(
            HolderSettings(cache_dir=self.root / "cache", run_dir=self.run),
            lambda: self.fetcher,  # type: ignore[arg-type, return-value]
        )
        made.on_gone = self.gone.append
        made.start()
        self.open.append(made)
        return made

    def close(self, made: NativeMounts, *, keep: bool) -> None:
        self.open.remove(made)
        made.close(keep=keep)

    def acquire(self, made: NativeMounts, grant: str = "user", **more: Any) -> None:
        made.acquire("m1", ARTIFACT, self.path, grant=grant, checkpoint=more.get("checkpoint", lambda _: None))

    def left(self) -> list[object]:
        return [*MountTable.read().below(self.root), *self.run.rglob("*"), *self.fetcher.pins]


@pytest.fixture
def here() -> Iterator[Here]:
    place = Here(Path(tempfile.mkdtemp(prefix="wl-")).resolve())
    yield place
    for made in place.open:
        made.close(keep=False)
    for entry in MountTable.read().below(place.root):
        device.unmount(entry.mountpoint, lazy=True)
    subprocess.run(["rm", "-r", str(place.root)], check=True)


def test_it_is_shared_and_goes_when_it_is_unmounted(here: Here) -> None:
    mounts = here.mounts()
    here.acquire(mounts)
    here.acquire(mounts, "other")
    assert b"0123456789" == (here.path / "file").read_bytes()
    status = mounts.status("m1")
    assert ("native", 10, 10, ("user", "other")) == (
        *(status.served_by, status.bytes_cached, status.bytes_total),
        status.grants,
    )
    assert "m1" == mounts.find(here.path)
    assert [1, 1, 0] == [mounts.release("m1", name) for name in ("user", "user", "other")]
    mounts.unmount("m1")
    here.close(mounts, keep=True)
    assert [] == here.left()


def test_conditions_of_many_mounts_cost_one_look_at_the_mount_table(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a mount that was made since then is never judged by it, and one that went is seen a second later."""
    mounts = here.mounts()
    mounts._recent_table()
    here.acquire(mounts)
    assert "healthy" == mounts.health("m1").state
    looked = []
    monkeypatch.setattr(native.MountTable, "read", lambda: looked.append(1) or MountTable(()))
    for _ in range(5):
        assert "healthy" == mounts.health("m1").state
    assert [] == looked
    monkeypatch.setattr(native, "_TABLE_LIFE_S", -1.0)
    assert "broken" == mounts.health("m1").state
    with pytest.raises(NotFound):
        mounts.health("m2")


@pytest.mark.parametrize("step", ["kept", "mounted", "live"])
def test_a_mount_that_is_given_up_leaves_nothing(here: Here, step: str) -> None:
    def fail(reached: str) -> None:
        if reached == step:
            raise RuntimeError(step)

    mounts = here.mounts()
    with pytest.raises(RuntimeError):
        here.acquire(mounts, checkpoint=fail)
    assert [] == mounts.statuses()
    here.close(mounts, keep=True)
    assert [] == here.left()


def test_what_is_not_whole_is_not_mounted(here: Here) -> None:
    mounts = here.mounts()
    here.fetcher.whole = False
    with pytest.raises(NotFound):
        here.acquire(mounts)
    here.close(mounts, keep=True)
    assert [] == here.left()


def test_a_successor_finds_it_with_its_users(here: Here) -> None:
    first = here.mounts()
    here.acquire(first)
    here.acquire(first, "other")
    here.close(first, keep=True)
    second = here.mounts()
    assert ("user", "other") == second.status("m1").grants
    assert 1 == second.release("m1", "user")
    here.close(second, keep=False)
    assert [] == here.left()


def test_a_successor_cleans_up_after_one_that_died(here: Here) -> None:
    """The mount went while nobody was here, or the machine was restarted; a record is torn; a tree was being made."""
    first = here.mounts()
    here.acquire(first)
    here.close(first, keep=True)
    device.unmount(here.path)
    (here.run / "holder.native" / "torn.json").write_text("{")
    (here.run / "holder.native" / "tree").mkdir(exist_ok=True)
    device.mount_file_system(device.TMPFS, here.run / "holder.native" / "tree", "")
    second = here.mounts()
    assert [] == second.statuses()
    until(lambda: not here.fetcher.pins, "its pin is gone")
    assert () == MountTable.read().below(here.root)


def test_a_record_of_a_later_version_is_left_alone(here: Here) -> None:
    """As long as it says that this one cannot read it; what it only adds is passed over."""
    first = here.mounts()
    here.acquire(first)
    here.close(first, keep=True)
    (path,) = (here.run / "holder.native").glob("*.json")
    written = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**written, "version": VERSION + 1, "needs": VERSION + 1, "more": 1}))
    second = here.mounts()
    assert [] == second.statuses()
    here.close(second, keep=True)
    assert path.exists()
    assert {"mount:m1"} == here.fetcher.pins
    assert b"0123456789" == (here.path / "file").read_bytes()
    path.write_bytes(msgspec.json.encode({**written, "version": 2, "more": 1}))
    assert ["m1"] == [status.id for status in here.mounts().statuses()]


def test_who_unmounts_it_is_noticed(here: Here) -> None:
    """But not as long as it is bound somewhere."""
    mounts = here.mounts()
    here.acquire(mounts)
    other = here.root / "bound"
    other.mkdir()
    device.bind(here.path, other)
    device.unmount(here.path)
    assert ("healthy", (str(other),)) == (mounts.status("m1").condition.state, mounts.status("m1").targets)
    device.unmount(other)
    until(lambda: [status.id for status in here.gone] == ["m1"], "it is told")
    assert "broken" == here.gone[0].condition.state
    until(lambda: not here.fetcher.pins, "its pin is gone")
    assert "m1" not in mounts


def test_a_fetcher_that_is_away_is_told_later(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse.mounting.native._UNPIN_PAUSE_S", 0.05)
    mounts = here.mounts()
    here.acquire(mounts)
    here.fetcher.away = True
    mounts.unmount("m1")
    assert {"mount:m1"} == here.fetcher.pins
    here.fetcher.away = False
    until(lambda: not here.fetcher.pins, "the fetcher is told")


def test_what_is_busy_or_mounted_over_stays(here: Here) -> None:
    mounts = here.mounts()
    here.acquire(mounts)
    with (here.path / "file").open("rb"):
        with pytest.raises(Conflict, match=f"process {os.getpid()}"):
            mounts.unmount("m1")
        assert b"0123456789" == (here.path / "file").read_bytes()
    device.mount_file_system(device.TMPFS, here.path, "")
    with pytest.raises(Conflict, match="mounted over it"):
        mounts.unmount("m1")
    device.unmount(here.path)
    mounts.unmount("m1")
    assert {} == {entry.mountpoint: entry for entry in MountTable.read().below(here.root)}


def test_a_place_that_is_taken_is_refused(here: Here) -> None:
    mounts = here.mounts()
    device.mount_file_system(device.TMPFS, here.path, "")
    with pytest.raises(Conflict, match="tmpfs"):
        here.acquire(mounts)
    assert set() == here.fetcher.pins


def test_a_record_that_cannot_be_written_undoes_the_mount(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = here.mounts()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(MountFailed, match="No space"):
        here.acquire(mounts)
    monkeypatch.undo()
    here.close(mounts, keep=True)
    assert [] == here.left()


def test_the_label_is_that_of_the_overlay_and_not_of_its_tree(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is nobody's to read but the overlay's."""
    label, told, real = "a:b:c:s0", [], device.mount_file_system

    def mount(kind: str, mountpoint: Path, options: str, *, label: str = "", **more: Any) -> None:
        told.append((kind, label))
        real(kind, mountpoint, options, **more)

    monkeypatch.setattr(device, "mount_file_system", mount)
    mounts = here.mounts()
    mounts.acquire("m1", replace(ARTIFACT, label=label), here.path, grant="user", checkpoint=lambda _: None)
    assert told == [(device.TMPFS, ""), (device.OVERLAY, label)]
