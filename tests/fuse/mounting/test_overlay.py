"""An overlay over blobs: made as root, of a tree that somebody without privileges has computed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fuse.errors import MountFailed
from fuse.filesystem.native import MAX_INLINE_BYTES, Section
from fuse.filesystem.table import Artifact, Blob, Node, Table
from fuse.filesystem.tree import Tree
from fuse.mounting import device, overlay
from fuse.mounting.mountinfo import MountTable

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(30)]

CONTENT = os.urandom(100_000)
BLOBS = (Blob("sha256:a", len(CONTENT), "type/a"), Blob("sha512:b", 10, "type/b"))
PLACES = ("sha256/a.100000.x.data", "sha512/b.10.x.data")
ROOT = Node(1, "", "d", 0o555, 10**18)


class Here:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs, self.mount, self.scratch = (root / name for name in ("blobs", "mount", "scratch"))
        for directory in (self.mount, self.scratch):
            directory.mkdir()
        for place, content in zip(PLACES, (CONTENT, b"0123456789"), strict=True):
            path = self.blobs / place
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            path.chmod(0o444)

    def show(self, *nodes: Node, places: tuple[str, ...] = PLACES, copies: Mapping[Section, str] | None = None) -> Path:
        artifact = Artifact(digest="sha256:m", media_type="model")
        tree = Tree(Table(artifacts=(artifact,), blobs=BLOBS, nodes=(ROOT, *nodes)), 12, 34)
        overlay.mount(tree, places, copies or {}, self.blobs, self.mount, self.scratch)
        return self.mount


@pytest.fixture
def here() -> Iterator[Here]:
    root = Path(tempfile.mkdtemp(prefix="wl-")).resolve()
    place = Here(root)
    yield place
    for entry in MountTable.read().below(root):
        device.unmount(entry.mountpoint, lazy=True)
    subprocess.run(["rm", "-r", str(root)], check=True)


def test_a_tree_is_shown_as_it_is_described(here: Here) -> None:
    """One blob under two names has two modes and times; parts of blobs are copies; links and directories are themselves."""
    shown = here.show(
        Node(1, "dir", "d", 0o500, 7 * 10**9),
        Node(2, "deep ü", "d", 0o555, 8 * 10**9),
        Node(3, "one", "f", 0o444, 1_500_000_001, len(CONTENT), 0, 0),
        Node(1, "two", "f", 0o755, 2, len(CONTENT), 0, 0),
        Node(1, "part", "f", 0o400, 3, 7, 1, 2),
        Node(1, "empty", "f", 0o444, 4),
        Node(1, "link", "l", 0o777, 5 * 10**9, target="dir/deep ü/one"),
    )
    one, two = shown / "dir" / "deep ü" / "one", shown / "two"
    assert CONTENT == one.read_bytes() == two.read_bytes() == (shown / "link").read_bytes()
    assert (b"2345678", b"") == ((shown / "part").read_bytes(), (shown / "empty").read_bytes())
    assert [0o444, 0o555, 0o400, 0o500] == [
        path.stat().st_mode & 0o7777 for path in (one, two, shown / "part", shown / "dir")
    ]
    assert [1_500_000_001, 2, 5 * 10**9, 7 * 10**9, 10**18] == [
        path.lstat().st_mtime_ns for path in (one, two, shown / "link", shown / "dir", shown)
    ]
    assert {(12, 34)} == {(path.lstat().st_uid, path.lstat().st_gid) for path in (shown, *shown.rglob("*"))}
    assert b"sha512:b" == os.getxattr(shown / "part", "user.weightless.digest")
    assert b"sha256:m" == os.getxattr(shown, "user.weightless.artifact")


def test_a_part_that_is_a_file_of_its_own_is_shown_from_there(here: Here) -> None:
    """Under every name that it has, with the attributes of the blob that it is a part of; nothing of it is copied again."""
    (here.blobs / "sha256" / "copy").write_bytes(b"a file of its own")
    section = Section(0, 512, 17)
    shown = here.show(
        Node(1, "one", "f", 0o444, 1, 17, 0, 512),
        Node(1, "link", "f", 0o500, 2, 17, 0, 512),
        Node(1, "small", "f", 0o444, 3, 10, 0, 512),
        copies={section: "sha256/copy"},
    )
    assert b"a file of its own" == (shown / "one").read_bytes() == (shown / "link").read_bytes()
    assert CONTENT[512:522] == (shown / "small").read_bytes()
    assert (b"512", b"sha256:a") == tuple(
        os.getxattr(shown / "one", f"user.weightless.{name}") for name in ("offset", "digest")
    )
    assert (0o500, 2) == ((shown / "link").stat().st_mode & 0o777, (shown / "link").stat().st_mtime_ns)


def test_memory_is_not_filled_with_what_should_be_files(here: Here) -> None:
    """Whoever says that the tree can be shown has no privileges, and the memory is the node's."""
    large = Node(1, "large", "f", 0o444, 1, MAX_INLINE_BYTES + 1, 2, 5)
    blobs = (*BLOBS, Blob("sha256:c", 1 << 40, "type/c"))
    artifact = Artifact(digest="sha256:m", media_type="model")
    tree = Tree(Table(artifacts=(artifact,), blobs=blobs, nodes=(ROOT, large)))
    with pytest.raises(MountFailed, match="into memory"):
        overlay.mount(tree, (*PLACES, "sha256/c"), {}, here.blobs, here.mount, here.scratch)
    assert () == MountTable.read().below(here.root)


@pytest.mark.parametrize(
    ("release", "can"), [("6.5.0-14-generic", True), ("6.4.99", False), ("5.15.0", False), ("10.0", True), ("?", False)]
)
def test_which_kernels_can(release: str, can: bool) -> None:
    assert can == overlay.kernel_can(release)


def test_it_is_ours_guarded_and_all_there_is(here: Here) -> None:
    """The tmpfs has left the tree; the overlay lives on without it."""
    here.show()
    (entry,) = MountTable.read().below(here.root)
    assert (here.mount, True, True) == (entry.mountpoint, entry.ours, entry.native)
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(entry.options)


@pytest.mark.parametrize(
    "nodes",
    [
        (Node(1, "..", "d", 0o555, 0),),
        (Node(1, "../../escaped", "f", 0o444, 0, 7, 1, 0),),
        (Node(1, "/tmp/escaped", "f", 0o444, 0, 7, 1, 0),),
        (Node(1, "", "f", 0o444, 0),),
        (Node(1, ".", "d", 0o555, 0),),
        (Node(1, "a\0b", "f", 0o444, 0),),
        (Node(1, "x" * 256, "f", 0o444, 0),),
        (Node(1, "twice", "f", 0o444, 0), Node(1, "twice", "f", 0o444, 0)),
        (Node(1, "link", "l", 0o777, 0, target="/tmp"), Node(1, "link", "d", 0o555, 0), Node(3, "in", "f", 0o444, 0)),
        (Node(1, "link", "l", 0o777, 0, target="/tmp"), Node(1, "link", "f", 0o444, 0, 7, 1, 0)),
        (Node(1, "no target", "l", 0o777, 0),),
        (Node(1, "late", "f", 0o444, 1 << 100),),
        (Node(1, "beyond", "f", 0o444, 0, 20, 1, 5),),
    ],
)
def test_a_hostile_tree_is_refused_and_leaves_nothing(here: Here, nodes: tuple[Node, ...]) -> None:
    """It comes from a process that reads what strangers wrote, and is made real by root."""
    before = sorted(here.root.rglob("*"))
    with pytest.raises(MountFailed):
        here.show(*nodes)
    assert before == sorted(here.root.rglob("*"))
    assert () == MountTable.read().below(here.root)


@pytest.mark.parametrize(
    "place",
    ["sha256/../../secret", "../secret", "/etc/passwd", "sha256/", "sha256/link", "link/a", "sha256/fifo", "sha256"],
)
def test_no_other_files_than_blobs_are_read(here: Here, place: str) -> None:
    """Whoever owns the cache may put links into it."""
    (here.root / "secret").write_bytes(b"0123456789")
    (here.blobs / "sha256" / "link").symlink_to(here.root / "secret")
    (here.blobs / "link").symlink_to(here.blobs / "sha512")
    (here.blobs / "sha512" / "a").write_bytes(b"0123456789")
    os.mkfifo(here.blobs / "sha256" / "fifo")
    with pytest.raises(MountFailed):
        here.show(Node(1, "part", "f", 0o444, 0, 7, 1, 2), places=(PLACES[0], place))
    assert () == MountTable.read().below(here.root)


@pytest.mark.parametrize("place", ["../secret", "sha256/../../secret", "/etc/passwd"])
def test_no_copy_lies_elsewhere(here: Here, place: str) -> None:
    with pytest.raises(MountFailed, match="none in the cache"):
        here.show(Node(1, "part", "f", 0o444, 0, 7, 1, 2), copies={Section(1, 2, 7): place})


def test_the_kernel_follows_no_link_in_the_cache_either(here: Here) -> None:
    """For a file that is a whole blob nothing is read before somebody opens it."""
    (here.root / "secret").write_bytes(b"0123456789")
    (here.blobs / "sha512" / "link").symlink_to(here.root / "secret")
    shown = here.show(Node(1, "whole", "f", 0o444, 0, 10, 1, 0), places=(PLACES[0], "sha512/link"))
    with pytest.raises(OSError):
        (shown / "whole").read_bytes()
