"""Without root: the whole life of a mount as an ordinary user, through fusermount3."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse.errors import Missing
from fuse.mounting import fusermount
from tests.conftest import need, need_program
from tests.support import ordinary
from tests.support.leaks import Sandbox, sandbox
from weightless.demo.pack import pack_model
from weightless.demo.registry import ModelRegistry

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(90)]

_LIFE = """
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from fuse import logs
from fuse.errors import Conflict, InvalidRequest, MountFailed
from fuse.filesystem.table import View
from fuse.mounting import fusermount
from fuse.mounting.access import AccessReader
from fuse.mounting.manager import HolderSettings, MountManager
from fuse.mounting.mountinfo import MountTable
from tests.support.waiting import until

logs.configure("test", "warning")
assert os.getuid() != 0
box = Path({box!r})
reference = {reference!r}
access = AccessReader(local_allowed=True).access(reference)
content = b"weights" * 500_000

def manager():
    gone = []
    made = MountManager(HolderSettings(cache_dir=box / "cache", run_dir=box / "run"), on_gone=gone.append)
    made.start()
    return made, gone

def mount(manager):
    artifact = manager.resolve(reference, access, View())
    return manager.acquire(artifact, box / "mount", prefetch="none", grant="me", access=access)

(box / "mount").mkdir()
first, _ = manager()
mount_id = mount(first)
entry = MountTable.read().at(box / "mount")
assert entry.ours and {{"ro", "nosuid", "nodev", "noexec"}} <= set(entry.options), entry
file = box / "mount" / "model.bin"
assert file.read_bytes() == content
assert file.stat().st_uid == os.getuid()
pid = first.status(mount_id).worker_pid
os.kill(pid, signal.SIGKILL)
until(lambda: first.status(mount_id).worker_pid not in (None, pid), "the worker is replaced")
assert file.read_bytes() == content
reader = file.open("rb", buffering=0)
try:
    first.unmount(mount_id)
    raise SystemExit("a busy mount was unmounted")
except Conflict as error:
    assert f"process {{os.getpid()}} " in error.what, error
reader.close()
first.close(keep=True)

second, gone = manager()
assert second.lost() == []
assert file.read_bytes() == content
second.unmount(mount_id)
assert MountTable.read().at(box / "mount") is None

mount(second)
subprocess.run(["fusermount3", "-u", str(box / "mount")], check=True)
until(lambda: gone, "the user's unmount is noticed")
fusermount.unmount(box / "mount")
try:
    fusermount.mount(Path("/usr"))
    raise SystemExit("mounted over somebody else's directory")
except MountFailed as error:
    assert "fusermount3: " in error.what and error.where == "/usr", error
second.close(keep=False)
print("done")
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox() as made:
        yield made


def test_an_ordinary_user_mounts_recovers_and_unmounts(box: Sandbox, tmp_path: Path) -> None:
    """Mounted, read, worker killed, busy, handed to a successor, unmounted by us and by hand: all as a user."""
    need(os.geteuid() == 0, "a mount namespace of one's own needs root")
    need_program("fusermount3", "fuse3")
    need_program("unshare", "util-linux")
    for name in ("home", "node"):
        box.directory(name)
    (box.root / "home").chmod(0o777)
    (tmp_path / "model.bin").write_bytes(b"weights" * 500_000)
    environment = {**box.environment, "PYTHONDONTWRITEBYTECODE": "1", "DOCKER_CONFIG": str(box.root / "home")}
    with ModelRegistry() as registry:
        pack_model(tmp_path).serve(registry, "m", "v1")
        life = _LIFE.format(
            root=str(Path(__file__).parents[3]), box=str(box.root / "home"), reference=f"{registry.host}/m:v1"
        )
        done = ordinary.run(box.root / "node", [sys.executable, "-c", life], environment=environment)
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_a_missing_fusermount_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user learns which package to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="install the package fuse3"):
        fusermount.mount(tmp_path)
