"""A machine of its own on this machine, in which Kubernetes' programs find their fixed paths and ports free.

It is a set of namespaces (mounts, processes, network, host name, IPC). In it the directories that those programs use by name
are this run's own, the network is a loopback with an address, and whatever was started ends with the first process: the
kernel sees to it, however that ends. Nothing outside changes but a temporary directory and parents of control groups, which
`run` removes.

This module knows nothing of Kubernetes beyond those paths and addresses. `run` is called outside; the module as a program is the
first process.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from tests.support.waiting import until

NODE: Final = "node-1"
NODE_ADDRESS: Final = "192.0.2.10"
SERVICE_ADDRESS: Final = "10.96.0.1"
"""Where pods look for the API server. It is an address of the loopback, so nothing has to translate it."""

LOGS_VARIABLE: Final = "WEIGHTLESS_CLUSTER_LOGS"
CGROUP_VARIABLE: Final = "WEIGHTLESS_CLUSTER_CGROUP"

_CGROUPS: Final = Path("/sys/fs/cgroup")
# Copies on write of what is there: mount points can be made in them, and files, that the machine itself never sees.
_COPIED: Final = ("/etc", "/opt", "/var/lib", "/var/log")
# Real file systems, for overlays (containerd's) cannot be stacked on those copies.
_OWN: Final = ("/var/lib/containerd", "/var/lib/kubelet", "/var/lib/weightless", "/var/log/pods")
# Kubelet sets these for the whole kernel unless it finds them so.
_WANTED_BY_KUBELET: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def run(command: Sequence[str], *, logs: Path) -> int:
    """Runs the command in a new machine and returns its exit code. What it writes into `logs` stays."""
    with _temporary_directory() as root, _control_groups(root.name) as cgroup:
        inside = [sys.executable, "-m", "tests.cluster.machine", str(root), *command]
        unshare = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        environment = {**os.environ, CGROUP_VARIABLE: cgroup, LOGS_VARIABLE: str(logs)}
        process = subprocess.Popen([*unshare, *inside], env=environment)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal has told those inside as well: they say why they end, and end.
            with suppress(subprocess.TimeoutExpired):
                return process.wait(60)
            return 128 + signal.SIGINT
        finally:
            process.kill()
            process.wait()


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    # Not /tmp, which is memory on many machines: images, a cache and a database are to come.
    root = Path(tempfile.mkdtemp(prefix="weightless-cluster-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        root.chmod(0o755)
        yield root
    finally:
        shutil.rmtree(root)


@contextmanager
def _control_groups(name: str) -> Iterator[str]:
    """A parent for everything that kubelet makes, in each hierarchy; its path below them."""
    unified = (_CGROUPS / "cgroup.controllers").exists()
    hierarchies = [_CGROUPS] if unified else [path for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists()]
    parents = [hierarchy / name for hierarchy in hierarchies]
    try:
        for parent in parents:
            parent.mkdir()
        yield f"/{name}"
    finally:
        # Those that were killed need a moment to end.
        until(lambda: _removed(parents), "the control groups are empty", within_s=60)


def _removed(parents: Sequence[Path]) -> bool:
    try:
        for parent in parents:
            for folder, _, _ in os.walk(parent, topdown=False):
                Path(folder).rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


# ---- inside ----


def _main(root: Path, command: Sequence[str]) -> int:
    socket.sethostname(NODE)
    _make_mounts(root)
    _make_network()
    return _first_process(command)


def _make_mounts(root: Path) -> None:
    _mount("tmpfs", "/run", "-t", "tmpfs", "-o", "mode=0755")
    for path in _COPIED:
        upper, work = (root / kind / path.replace("/", "-").strip("-") for kind in ("upper", "work"))
        Path(path).mkdir(exist_ok=True)
        for directory in (upper, work):
            directory.mkdir(parents=True)
        _mount("overlay", path, "-t", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}")
    for path in _OWN:
        source = root / "own" / path.replace("/", "-").strip("-")
        source.mkdir(parents=True)
        Path(path).mkdir(parents=True, exist_ok=True)
        _mount(str(source), path, "--bind")
    for name, value in _WANTED_BY_KUBELET.items():
        file = root / "sysctl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        _mount(str(file), f"/proc/sys/{name}", "--bind")
    # The kernel lets a user namespace (hostUsers: false) mount /proc only where one can be seen whole.
    Path("/run/proc").mkdir()
    _mount("proc", "/run/proc", "-t", "proc")
    # What a pod mounts is to be seen by kubelet and by other pods, as on a node.
    subprocess.run(["mount", "--make-rshared", "/"], check=True)


def _make_network() -> None:
    for arguments in (
        ("link", "set", "lo", "up"),
        ("address", "add", f"{SERVICE_ADDRESS}/32", "dev", "lo"),
        ("address", "add", f"{NODE_ADDRESS}/32", "dev", "lo"),
    ):
        subprocess.run(["ip", *arguments], check=True)


def _first_process(command: Sequence[str]) -> int:
    """Starts the command, passes signals to it, and buries whatever loses its parent, until it ends."""
    child = subprocess.Popen(command)

    def forward(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    # The terminal's own has reached the command already.
    signal.signal(signal.SIGINT, lambda *_: None)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _mount(source: str, target: str, *options: str) -> None:
    subprocess.run(["mount", *options, source, target], check=True)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
