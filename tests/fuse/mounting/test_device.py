"""The kernel's side: mounts, binds and connections, with nobody serving them. Whatever is asked here must not hang."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fuse.errors import Conflict, InvalidRequest, Missing, MountFailed
from fuse.mounting import device
from fuse.mounting.mountinfo import MountTable
from tests.conftest import need
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(30)]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose mounts are taken away at the end."""
    root = Path(tempfile.mkdtemp(prefix="wl-")).resolve()
    (root / "mount").mkdir()
    yield root
    for entry in MountTable.read().below(root):
        device.unmount(entry.mountpoint, lazy=True)
    subprocess.run(["rm", "-r", str(root)], check=True)


@pytest.fixture
def mounted(place: Path) -> Iterator[tuple[Path, int]]:
    """A mount that nobody serves, and its device."""
    fd = device.open_device()
    device.mount(fd, place / "mount")
    yield place / "mount", fd
    os.close(fd)


def test_a_mount_is_ours_read_only_and_guarded(mounted: tuple[Path, int]) -> None:
    """Type, source and flags, in the mount and in its superblock."""
    entry = MountTable.read().at(mounted[0])
    assert entry is not None
    assert entry.ours
    assert entry.source == "weightless"
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(entry.options)


def test_the_first_message_is_init(mounted: tuple[Path, int]) -> None:
    """FUSE_INIT (26) of protocol 7, read from the fresh device."""
    init = device.read_init(mounted[1])
    _, opcode = struct.unpack_from("<II", init)
    assert opcode == 26
    assert struct.unpack_from("<I", init, 40)[0] == 7


def test_init_that_does_not_come_is_an_error(place: Path) -> None:
    """The wait has a limit."""
    reader, writer = os.pipe()
    with pytest.raises(MountFailed, match="no FUSE_INIT"):
        device.read_init(reader, limit_s=0.05)
    os.close(reader)
    os.close(writer)


def test_the_end_of_a_connection_is_seen_at_its_device(mounted: tuple[Path, int]) -> None:
    """Alive while mounted anywhere; gone with the last unmount."""
    path, fd = mounted
    (path.parent / "bind").mkdir()
    device.bind(path, path.parent / "bind")
    assert not device.gone(fd)
    device.unmount(path)
    assert not device.gone(fd)
    device.unmount(path.parent / "bind")
    assert device.gone(fd)


def test_binds_and_unmounts_need_nobody_to_serve(mounted: tuple[Path, int]) -> None:
    """Not one of these asks the file system anything; a stat would hang."""
    path, _ = mounted
    target = path.parent / "target"
    target.mkdir()
    device.bind(path, target)
    entry = MountTable.read().at(target)
    assert entry is not None
    assert entry.ours
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(entry.options)
    with pytest.raises(Conflict, match="mounted there already"):
        device.usable_mountpoint(target)
    with pytest.raises(InvalidRequest, match="inside of a mounted model"):
        device.usable_mountpoint(target / "sub" / "directory")
    device.unmount(target)
    device.unmount(path)
    assert MountTable.read().below(path.parent) == ()


def test_an_exchange_shows_the_directory_below_to_nobody(mounted: tuple[Path, int]) -> None:
    """Again and again, while somebody asks all the time whose directory it is."""
    path, fd = mounted
    target = path.parent / "target"
    (target / "below").mkdir(parents=True)
    device.bind(path, target)
    program = "import os, sys\nprint(flush=True)\nwhile not os.path.lexists(sys.argv[1] + '/below'): pass"
    with subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE) as looker:
        assert looker.stdout is not None
        looker.stdout.readline()
        answered = threading.Thread(target=_answer_enoent, args=(fd,), daemon=True)
        answered.start()
        exchanged = [device.exchange(path, target) for _ in range(1000)]
        seen = looker.poll()
        looker.kill()
    need(all(exchanged), "the kernel has no MOVE_MOUNT_BENEATH (Linux 6.5)")
    assert seen is None
    entries = MountTable.read().below(target)
    assert len(entries) == 1
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(entries[0].options)
    device.unmount(path, lazy=True)
    device.unmount(target, lazy=True)
    answered.join()


def _answer_enoent(fd: int) -> None:
    """Serves a file system in which there is nothing, until it is unmounted."""
    with suppress(OSError):
        while True:
            request = os.read(fd, 1 << 21)
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode == 26:  # FUSE_INIT: 7.31, the rest as the kernel likes it
                os.write(fd, struct.pack("<IiQIIIIHHII", 80, 0, unique, 7, 31, 131072, 0, 12, 9, 131072, 1) + bytes(36))
            else:
                os.write(fd, struct.pack("<IiQ", 16, -errno.ENOENT, unique))


def test_an_exchange_that_cannot_be_leaves_what_is_there(mounted: tuple[Path, int]) -> None:
    """Nothing is mounted at the target, or there is no source."""
    path, _ = mounted
    (path.parent / "target").mkdir()
    assert not device.exchange(path, path.parent / "target")
    assert not device.exchange(path.parent / "missing", path)
    assert [entry.mountpoint for entry in MountTable.read().below(path.parent)] == [path]


def test_a_bind_that_fails_leaves_nothing(place: Path) -> None:
    """A target or source that is missing is named, and nothing is mounted."""
    with pytest.raises(MountFailed, match="No such file"):
        device.bind(place / "mount", place / "missing")
    with pytest.raises(MountFailed, match="No such file"):
        device.bind(place / "missing", place / "mount")
    assert MountTable.read().below(place) == ()


def test_a_link_is_not_mounted_upon(place: Path) -> None:
    """The directory that was checked is the one that is mounted upon, or none."""
    (place / "link").symlink_to(place / "mount")
    fd = device.open_device()
    with pytest.raises(MountFailed):
        device.mount(fd, place / "link")
    os.close(fd)


def test_a_busy_mount_is_refused_naming_who_uses_it_and_goes_lazily(mounted: tuple[Path, int]) -> None:
    """EBUSY says which process; a lazy unmount always works."""
    path, _ = mounted
    # O_PATH pins the mount without asking the file system.
    code = f"import os, time; os.open({str(path)!r}, os.O_PATH); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        with pytest.raises(Conflict, match=rf"in use by process {user.pid} \(python"):
            device.unmount(path)
        device.unmount(path, lazy=True)
        user.kill()
    assert MountTable.read().at(path) is None


def test_unmounting_nothing_is_no_error(place: Path) -> None:
    """A directory that is not mounted, or not there."""
    device.unmount(place / "mount")
    device.unmount(place / "missing")


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/deep", "cannot be reached"), ("missing", "create it first"), ("file", "not a directory")],
)
def test_a_mount_point_that_cannot_be_used_is_named(place: Path, name: str, message: str) -> None:
    """What is wrong, where, and what to do."""
    (place / "file").touch()
    with pytest.raises(InvalidRequest, match=message) as caught:
        device.usable_mountpoint(place / name)
    assert caught.value.where == str(place / name)


def test_a_mount_point_is_made_real(place: Path) -> None:
    """Links on the way are followed once, before the mount."""
    (place / "link").symlink_to("mount")
    assert device.usable_mountpoint(place / "link") == place / "mount"


def test_tuning_reaches_the_kernel_and_never_fails(mounted: tuple[Path, int]) -> None:
    """Read-ahead is as large as a request; what is not there is passed over."""
    entry = MountTable.read().at(mounted[0])
    assert entry is not None
    device.tune(entry.minor)
    assert Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text().strip() == str(device.READ_AHEAD_KB)
    device.tune(999999)


def test_a_missing_device_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user learns that the kernel module is not loaded."""
    monkeypatch.setattr(device, "_DEVICE", "/dev/fuse-that-is-not-there")
    with pytest.raises(Missing, match="modprobe fuse"):
        device.open_device()


def test_a_dead_connection_ends_its_readers(mounted: tuple[Path, int]) -> None:
    """When the last device is closed, who waited gets an error instead of waiting for ever."""
    path, _ = mounted
    with subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import os\ntry: os.stat({str(path)!r})\nexcept OSError as e: print(e.errno)",
        ],
        stdout=subprocess.PIPE,
    ) as reader:
        until(lambda: "fuse" in Path(f"/proc/{reader.pid}/wchan").read_text() or reader.poll() is not None, "it waits")
        connection = MountTable.read().at(path)
        assert connection is not None
        device.unmount(path, lazy=True)
        with open(os.devnull) as null:
            os.dup2(null.fileno(), mounted[1])  # the last copy of the device is closed by this
        assert reader.stdout is not None
        assert int(reader.stdout.read()) in (errno.ENOTCONN, errno.ECONNABORTED)
