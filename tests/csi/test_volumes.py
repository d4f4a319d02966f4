"""Records on disk."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from csi.volumes import VERSION, VolumeRecord, VolumeRecords
from fuse.errors import InvalidConfig, MountFailed
from fuse.filesystem.table import View


def record(name: str = "a" * 40, **changes: object) -> VolumeRecord:
    made = VolumeRecord(
        name=name,
        volume_id="../../etc",
        target="/k/pods/x/volumes/kubernetes.io~csi/m/mount",
        stage="published",
        reference="r.example.com/a/b:v1",
        pinned="r.example.com/a/b:v1@sha256:00",
        view=View(exclude=("*.md",)),
        prefetch="full",
        parameters="p",
        identity="i",
        bytes_total=1,
        files=2,
    )
    return msgspec.structs.replace(made, **changes)


def loaded(directory: Path) -> VolumeRecords:
    records = VolumeRecords(directory)
    records.load()
    return records


def test_a_record_survives_a_restart(tmp_path: Path) -> None:
    """Put, replaced, removed: another instance sees the same; only root may look."""
    records = loaded(tmp_path)
    records.put(record(stage="publishing"))
    records.put(record())
    assert loaded(tmp_path).all() == [record()]
    (path,) = (tmp_path / "volumes").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    records.remove(record().name)
    records.remove(record().name)
    assert loaded(tmp_path).all() == []


def test_a_write_that_did_not_finish_changes_nothing(tmp_path: Path) -> None:
    """A half-written temporary file is removed, the record before it stands."""
    loaded(tmp_path).put(record())
    half = tmp_path / "volumes" / f"{record().name}.tmp"
    half.write_bytes(b'{"name": "a')
    again = loaded(tmp_path)
    assert again.all() == [record()]
    assert not half.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff\xfe", b'{"name": "\xff"}'])
def test_a_damaged_record_is_told_and_kept(tmp_path: Path, content: bytes) -> None:
    """It is not taken for a volume, nor thrown away: somebody may need to look at it."""
    loaded(tmp_path)
    path = tmp_path / "volumes" / f"{'b' * 40}.json"
    path.write_bytes(content)
    records = loaded(tmp_path)
    assert records.all() == []
    assert records.unreadable == [path]
    assert path.exists()


def test_a_record_under_another_name_is_damaged(tmp_path: Path) -> None:
    """A copied file is no second volume."""
    records = loaded(tmp_path)
    records.put(record())
    (path,) = (tmp_path / "volumes").iterdir()
    path.rename(path.with_name("c" * 40 + ".json"))
    assert loaded(tmp_path).all() == []


def test_a_record_that_needs_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """It is not taken for nothing, and goes when it is asked to; one that only is of a later version is read."""
    loaded(tmp_path).put(record(version=VERSION + 1, needs=VERSION + 1))
    records = loaded(tmp_path)
    assert records.all() == []
    assert records.is_unreadable(record().name)
    assert len(records.unreadable) == 1
    records.remove(record().name)
    assert not records.is_unreadable(record().name)
    assert list((tmp_path / "volumes").iterdir()) == []
    records.put(record(version=VERSION + 1))
    assert loaded(tmp_path).all() == [record(version=VERSION + 1)]


def test_fields_of_a_later_release_are_passed_over(tmp_path: Path) -> None:
    """Within one version, what is not known is ignored."""
    loaded(tmp_path).put(record())
    (path,) = (tmp_path / "volumes").iterdir()
    path.write_bytes(path.read_bytes().replace(b"{", b'{"new": 1,', 1))
    assert loaded(tmp_path).all() == [record()]


def test_a_failed_write_leaves_the_record_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: a clear error, no temporary file, the old record on disk and in memory."""
    records = loaded(tmp_path)
    records.put(record(stage="publishing"))

    def full(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MountFailed, match="cannot write the record"):
        records.put(record())
    monkeypatch.undo()
    assert records.all() == [record(stage="publishing")]
    assert loaded(tmp_path).all() == [record(stage="publishing")]


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    """Said before anything is served."""
    (tmp_path / "state").touch()
    with pytest.raises(InvalidConfig, match="state-dir"):
        loaded(tmp_path / "state")
