"""Labels of mounts: what one looks like, how the kernel is told, and what this node says of SELinux. No kernel is asked.

`tests/selinux` has the same where a kernel enforces a policy.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.errors import InvalidRequest, Missing, MountFailed
from fuse.mounting import device, fusermount, selinux

LABEL = f"{selinux.FOR_CONTAINERS}:c1,c25"
Node = Callable[..., None]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Plays a node: what its kernel says of SELinux."""
    monkeypatch.setattr(selinux, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(selinux, "_SELINUXFS", tmp_path / "selinux")

    def says(current: str, file_systems: str = "nodev\tselinuxfs\n", **files: str) -> None:
        (tmp_path / "proc/self/attr").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/filesystems").write_text(f"nodev\tsysfs\n{file_systems}\text4\n")
        (tmp_path / "proc/self/attr/current").write_text(current)
        (tmp_path / "selinux").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / "selinux" / name).write_text(content)

    return says


@pytest.mark.parametrize(
    "label",
    [
        selinux.FOR_CONTAINERS,
        LABEL,
        "system_u:object_r:container_file_t",
        "system_u:object_r:my-tool.process_t:s0-s15:c0.c1023",
        "a:b:c:s0:c1.c3,c5-s3:c1.c9,c12",
    ],
)
def test_labels_are_taken_as_they_are(label: str) -> None:
    """With a range, with none, with categories."""
    assert selinux.parse(label) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "container_file_t",
        "system_u:object_r",
        "system_u:object_r:container_file_t:",
        f'{selinux.FOR_CONTAINERS}"',
        f"{selinux.FOR_CONTAINERS},suid",
        f'{selinux.FOR_CONTAINERS}",allow_other,x="',
        f"{selinux.FOR_CONTAINERS}:c1,",
        f"{selinux.FOR_CONTAINERS}:c1,fd=3",
        f"{selinux.FOR_CONTAINERS} ",
        f"{selinux.FOR_CONTAINERS}\n",
        f"{selinux.FOR_CONTAINERS}\0",
        f"\\{selinux.FOR_CONTAINERS}",
        "system_ü:object_r:container_file_t:s0",
        f"{selinux.FOR_CONTAINERS}:{'c1,' * 90}c1",
    ],
)
def test_what_is_no_label_is_refused(text: str) -> None:
    """Above all what would end the option, and begin another one."""
    with pytest.raises(InvalidRequest, match="no SELinux context"):
        selinux.parse(text)


@given(st.text(alphabet='azAZ09_-.:,"\\= \n\tsc', max_size=40) | st.from_regex(selinux._LABEL))
def test_no_text_that_is_taken_can_end_a_mount_option(text: str) -> None:
    """A comma may stand between two categories only, where the quotes keep it."""
    try:
        label = selinux.parse(text)
    except InvalidRequest:
        return
    assert set(label).isdisjoint("\"'\\= \n\t\0")
    assert "," not in ":".join(label.split(":")[:4])


@pytest.mark.parametrize(
    ("current", "file_systems", "active"),
    [
        ("system_u:system_r:spc_t:s0\0", "nodev\tselinuxfs\n", True),
        ("kernel\0", "nodev\tselinuxfs\n", False),
        ("unconfined\n", "nodev\tsecurityfs\n", False),
        (":ns://a:b (enforce)\n", "nodev\tsecurityfs\n", False),
    ],
    ids=["a policy", "no policy yet", "AppArmor", "AppArmor with colons"],
)
def test_selinux_counts_once_it_has_a_policy(node: Node, current: str, file_systems: str, active: bool) -> None:
    """As seen from a container, which has no selinuxfs."""
    node(current, file_systems)
    assert selinux.active() is active
    assert selinux.enforcing() is None
    assert selinux.knows(LABEL) is None


def test_a_node_without_security_modules_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to read then."""
    monkeypatch.setattr(selinux, "_PROC", tmp_path)
    assert not selinux.active()


@pytest.mark.parametrize(("enforce", "expected"), [("1", True), ("0", False)])
def test_the_mode_is_that_of_selinuxfs(node: Node, enforce: str, expected: bool) -> None:
    node("a:b:c\0", enforce=enforce)
    assert selinux.enforcing() is expected


def test_the_option_is_quoted(node: Node) -> None:
    """Or the kernel takes the second category for another option."""
    node("system_u:system_r:spc_t:s0\0")
    assert selinux.option(LABEL) == f',context="{LABEL}"'


def test_without_selinux_a_label_is_refused_and_no_label_is_not(node: Node) -> None:
    """The kernel would only say that an argument is invalid."""
    node("unconfined\n", "")
    assert selinux.option("") == ""
    with pytest.raises(Missing, match="SELinux is off"):
        selinux.option(LABEL)


class Kernel:
    """In libc's place: remembers the options of mounts, and refuses them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.options: list[str] = []

    def mount(self, _source: bytes, _target: bytes, _kind: bytes, _flags: object, data: bytes) -> int:
        self.options.append(data.decode())
        ctypes.set_errno(self.number)
        return -1


@pytest.mark.parametrize(
    ("number", "label", "words"),
    [
        (errno.EINVAL, LABEL, f"does not take the SELinux context {LABEL}.*weightless doctor"),
        (errno.EACCES, LABEL, f"does not let this process mount with the context {LABEL}.*spc_t"),
        (errno.EPERM, LABEL, r"Operation not permitted \(mounting needs root"),
        (errno.EINVAL, "", "mount: Invalid argument"),
        (errno.EACCES, "", r"Permission denied \(mounting needs root"),
    ],
)
def test_a_refusal_says_what_to_do_about_the_label(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, label: str, words: str
) -> None:
    """Where there is one; FUSE and the kernel's own file systems alike."""
    node("system_u:system_r:spc_t:s0\0")
    kernel = Kernel(number)
    monkeypatch.setattr(device, "_libc", kernel)
    with pytest.raises(MountFailed, match=words):
        device.mount(7, tmp_path, label)
    with pytest.raises(MountFailed, match=words):
        device.mount_file_system(device.OVERLAY, tmp_path, "lowerdir=/a::/b", label=label)
    ending = f',context="{label}"' if label else ""
    assert kernel.options == [
        f"fd=7,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions{ending}",
        f"lowerdir=/a::/b{ending}",
    ]


def test_who_is_not_root_gives_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fusermount3 knows no such option."""
    monkeypatch.setattr(fusermount, "_program", lambda: "/bin/false")
    with pytest.raises(Missing, match="only root"):
        fusermount.mount(tmp_path, LABEL)
