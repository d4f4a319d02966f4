"""A virtual machine with SELinux enforcing: Debian's kernel and policy, and this source with its virtual environment.

Debian 13, for its policy has the domains of containers. `make` builds the disk from packages, `run` boots it without a network
and returns what the tests in it returned. The processor is emulated, so that it runs where virtual machines are not allowed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_HERE: Final = Path(__file__).parent
_MIRROR: Final = os.environ.get("WEIGHTLESS_DEBIAN_MIRROR", "http://deb.debian.org/debian")
_AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_KERNEL: Final = ("linux-image-cloud-amd64", "initramfs-tools", "kmod")
_POLICY: Final = ("selinux-policy-default", "policycoreutils", "selinux-utils")
_DRIVER: Final = ("python3-dev", "python3-venv", "gcc", "libc6-dev", "libfuse3-dev", "pkg-config", "fuse3")
_TESTS: Final = ("ca-certificates", "docker-registry", "skopeo", "openssl", "iproute2", "strace", "curl", "procps")
_POLICIES: Final = "/etc/selinux/default"
_DISK: Final = "4G"
_LIMIT_S: Final = 1800
_MACHINE_MB: Final = 2560


@dataclass(frozen=True, slots=True)
class Made:
    disk: Path
    kernel: Path
    initrd: Path


def make(place: Path, arguments: list[str]) -> Made:
    """`arguments` are pytest's. Takes some three minutes, and 4 GB."""
    tree = place / "root"
    _say("making a root file system of Debian's packages")
    _do("debootstrap", "--variant=minbase", "trixie", tree, _MIRROR)
    (tree / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # no service is started in it
    (tree / "usr/sbin/policy-rc.d").chmod(0o755)
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--no-install-recommends")
    _inside(tree, *apt, *_KERNEL, *_POLICY, *_DRIVER, *_TESTS)
    _say("installing the Python packages of uv.lock into it")
    _install_source(tree)
    _install_policy(tree)
    (tree / "opt/arguments").write_text(shlex.join(arguments))
    shutil.copy(_HERE / "init.sh", tree / "usr/local/sbin/machine")
    # The kernel of this machine need not know SELinux: a label is an attribute of a file like others.
    _inside(tree, "setfiles", "-F", f"{_POLICIES}/contexts/files/file_contexts", "/")
    disk = place / "disk"
    _do("mke2fs", "-q", "-t", "ext4", "-d", tree, disk, _DISK)
    made = Made(
        disk, *(Path(shutil.copy(next(tree.glob(f"boot/{name}-*")), place)) for name in ("vmlinuz", "initrd.img"))
    )
    shutil.rmtree(tree)
    return made


def run(made: Made) -> int:
    """Shows the console of the machine while it runs. Its exit code is that of the tests."""
    _say("booting it, in software emulation")
    selinux = "security=selinux selinux=1 enforcing=1"
    kernel_line = f"root=/dev/vda rw console=ttyS0 quiet mitigations=off {selinux} init=/usr/local/sbin/machine"
    command = [
        *("timeout", str(_LIMIT_S), "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", "2", "-m", str(_MACHINE_MB), "-nic", "none", "-nographic", "-no-reboot"),
        *("-kernel", made.kernel, "-initrd", made.initrd, "-append", kernel_line),
        *("-drive", f"file={made.disk},if=virtio,format=raw"),
    ]
    code = 1
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as vm:
        assert vm.stdout is not None
        for line in vm.stdout:
            print(line, end="", flush=True)
            if ended := re.match(r"machine: exit (\d+)", line):
                code = int(ended[1])
    return code


def _install_source(tree: Path) -> None:
    """As `make setup` does, with the machine's own Python."""
    shutil.copy(_AUTHORITIES, tree / str(_AUTHORITIES).lstrip("/"))
    (tree / "etc/pip.conf").write_text(f"[global]\ncert = {_AUTHORITIES}\n")
    (tree / "opt/src").mkdir()
    files = _do("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (tree / "opt/src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / "opt/src" / name)
    _inside(tree, "python3", "-m", "venv", "/opt/uv")
    _inside(tree, "/opt/uv/bin/pip", "install", "--quiet", "--no-cache-dir", "uv")
    settings = ("UV_NATIVE_TLS=1", "UV_NO_CACHE=1", "UV_LINK_MODE=copy", "UV_PYTHON_DOWNLOADS=never")
    sync = ("/opt/uv/bin/uv", "sync", "--locked", "--quiet", "--python", "/usr/bin/python3", "--project", "/opt/src")
    _inside(tree, "env", *settings, *sync)
    # Compiled here, for the machine itself is slow.
    packages = [f"/opt/src/{name}" for name in (".venv/lib", "csi", "fuse", "tests", "weightless")]
    compile_all = ("/opt/src/.venv/bin/python", "-m", "compileall", "-q", "--invalidation-mode", "checked-hash")
    _inside(tree, *compile_all, *packages)


def _install_policy(tree: Path) -> None:
    (tree / "etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=default\n")
    shutil.copy(_HERE / "machine.cil", tree / "opt/machine.cil")
    _inside(tree, "semodule", "--noreload", "--install", "/opt/machine.cil")


def _inside(tree: Path, *command: str) -> None:
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _do("env", "-i", path, "HOME=/root", "chroot", tree, *command)


def _do(*command: object) -> str:
    done = subprocess.run(["nice", "-n", "19", *map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def _say(text: str) -> None:
    print(f"selinux-test: {text}", flush=True)
