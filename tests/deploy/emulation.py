"""Programs of another architecture run on this machine, by qemu, for the time of a test.

The kernel is told by binfmt_misc, which is one for the whole machine: what is there already stays as it is, and what was not
there is not there afterwards. The handler is Debian's own, of qemu-user-static; its flag F has the kernel open the emulator at
once, so that it is found in every root file system.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""By Debian's and the images' names, the kernel's."""
NATIVE: Final = next((name for name, machine in ARCHITECTURES.items() if machine == platform.machine()), "")

_REGISTRY: Final = Path("/proc/sys/fs/binfmt_misc")


def handler(architecture: str) -> Path:
    """As qemu-user-static brings it."""
    return Path(f"/usr/lib/binfmt.d/qemu-{ARCHITECTURES[architecture]}.conf")


@contextmanager
def emulated(architecture: str) -> Iterator[None]:
    with ExitStack() as stack:
        if architecture != NATIVE:
            stack.enter_context(_mounted())
            stack.enter_context(_registered(architecture))
        yield


@contextmanager
def _mounted() -> Iterator[None]:
    if (_REGISTRY / "register").exists():
        yield
        return
    subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _REGISTRY], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", _REGISTRY], check=True)


@contextmanager
def _registered(architecture: str) -> Iterator[None]:
    entry = _REGISTRY / f"qemu-{ARCHITECTURES[architecture]}"
    if entry.exists():
        yield
        return
    (_REGISTRY / "register").write_text(handler(architecture).read_text())
    try:
        yield
    finally:
        entry.write_text("-1")
