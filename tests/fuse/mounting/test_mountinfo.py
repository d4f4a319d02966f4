"""The mount table and the walk that never touches a mount of ours: pure, over invented tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse.errors import InvalidRequest
from fuse.mounting.mountinfo import Entry, MountTable, parse, resolve

CONTENT = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
90 27 0:52 / /srv/my\040models\134x ro,nosuid - fuse.weightless weightless ro,user_id=0
91 27 0:52 /sub /pods/a ro - fuse.weightless weightless ro
92 27 0:60 / /pods/a rw - tmpfs none rw
93 27 0:61 / /pods/a/inner rw - tmpfs none rw
nonsense
94 27 0:62 / /short rw
"""


@pytest.fixture
def table() -> MountTable:
    return MountTable(parse(CONTENT))


def test_lines_are_parsed_with_escapes_and_optional_fields(table: MountTable) -> None:
    """Spaces and backslashes in paths, any number of optional fields; lines of another shape are passed over."""
    assert [entry.mount_id for entry in table.entries] == [22, 27, 90, 91, 92, 93]
    ours = table.entries[2]
    assert ours.mountpoint == Path("/srv/my models\\x")
    assert (ours.device, ours.minor, ours.ours, ours.source) == ("0:52", 52, True, "weightless")
    assert table.entries[3].root == "/sub"


def test_the_topmost_mount_of_a_path_counts(table: MountTable) -> None:
    """Of mounts over each other one sees the last."""
    top = table.at(Path("/pods/a"))
    assert top is not None
    assert top.file_system == "tmpfs"
    assert table.at(Path("/pods")) is None


def test_binds_are_found_by_device_and_children_latest_first(table: MountTable) -> None:
    """A file system and its binds share a device; unmounting goes from the latest to the first."""
    assert [str(entry.mountpoint) for entry in table.of_device("0:52")] == ["/srv/my models\\x", "/pods/a"]
    assert [entry.mount_id for entry in table.below(Path("/pods/a"))] == [93, 92, 91]


def test_a_path_lies_in_its_deepest_mount(table: MountTable) -> None:
    """Whole components count, not the beginnings of names."""
    holding = table.holding(Path("/pods/ab"))
    assert holding is not None
    assert holding.mountpoint == Path("/")
    deep = table.holding(Path("/pods/a/inner/x"))
    assert deep is not None
    assert deep.mountpoint == Path("/pods/a/inner")


def test_links_are_followed_up_to_a_missing_last_component(tmp_path: Path) -> None:
    """The walk gives what the kernel would, also through relative, absolute and upward links."""
    real = tmp_path.resolve() / "real"
    (real / "deep").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real/deep")
    (tmp_path / "absolute").symlink_to(real)
    (real / "deep" / "up").symlink_to("../..")
    assert resolve(tmp_path / "relative") == real / "deep"
    assert resolve(tmp_path / "absolute" / "deep" / "new") == real / "deep" / "new"
    assert resolve(tmp_path / "relative" / "up" / "real") == real
    with pytest.raises(FileNotFoundError):
        resolve(tmp_path / "missing" / "new")


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    """Links that lead to each other are an error, not a hang."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidRequest, match="too many symbolic links"):
        resolve(tmp_path / "a")


def test_the_walk_stops_at_our_mounts(tmp_path: Path) -> None:
    """Below a mount of ours nothing is asked: a link there would not be seen, nor a missing file."""
    mount = tmp_path.resolve() / "mount"
    mount.mkdir()
    (mount / "link").symlink_to("/")
    table = MountTable(
        [
            Entry(
                mount_id=1,
                parent_id=0,
                device="0:9",
                root="/",
                mountpoint=mount,
                options=(),
                file_system="fuse.weightless",
                source="weightless",
            )
        ]
    )
    assert resolve(tmp_path / "mount" / "link" / "x", table) == mount / "link" / "x"
