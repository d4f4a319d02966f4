"""A user who is not root mounts, reads and unmounts, through fusermount3.

In a mount namespace of its own, where /dev/fuse is everybody's (as distributions make it; a bare machine may not) and the way
to the interpreter is open: root may have installed Python in a directory that others cannot enter.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need_program
from tests.support.cli import CommandLine
from tests.support.leaks import Sandbox
from tests.support.models import digest_tree
from tests.support.registry import FaultyRegistry

pytestmark = pytest.mark.kernel

NOBODY = 65534


def opened(path: Path, stage: Path) -> list[str]:
    """Shell commands that make `path` reachable for others: closed directories above it are covered by open, empty ones."""
    closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
    if not closed:
        return []
    inner = shlex.quote(str(path))
    return [
        f"mkdir {stage}",
        f"mount --bind {inner} {stage}",
        f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed[0]))}",
        f"mkdir -p {inner}",
        f"mount --move {stage} {inner}",
    ]


def as_nobody(sandbox: Sandbox, steps: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs shell commands as nobody in a prepared mount namespace."""
    script = sandbox.root / "steps.sh"
    script.write_text("set -eux\n" + "\n".join(steps) + "\n")
    environment = Path(sys.prefix)
    prepare = [
        "set -e",
        f"mkdir {sandbox.root}/dev",
        f"mount -t tmpfs tmpfs {sandbox.root}/dev",
        f"mknod -m 666 {sandbox.root}/dev/fuse c 10 229",
        f"mount --bind {sandbox.root}/dev/fuse /dev/fuse",
        *opened(Path(sys.base_prefix).resolve(), sandbox.root / "stage"),
        *opened(environment, sandbox.root / "stage2"),
        f"exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups sh {script}",
    ]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(prepare)],
        env=sandbox.environment,
        cwd=sandbox.root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_user_mounts_reads_and_unmounts(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """All files have the right sums; writing is EROFS; unmounting leaves no process."""
    need_program("fusermount3", "fuse3")
    need_program("setpriv", "util-linux")
    cli = CommandLine(sandbox)
    mounted = sandbox.root / "mnt"
    mounted.mkdir()
    for path in (sandbox.root, sandbox.run, sandbox.temporary, sandbox.docker, mounted):
        os.chown(path, NOBODY, NOBODY)

    def typed(*arguments: str | Path) -> str:
        return shlex.join(cli.argv(*arguments))

    done = as_nobody(
        sandbox,
        [
            typed("mount", reference, mounted),
            f"cd {mounted}",
            "find . -type f -exec sha256sum {} +",
            "if touch new; then exit 3; fi",
            "cd /",
            typed("status", "--json"),
            typed("unmount", mounted),
            f"rmdir {mounted}",
        ],
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    sums = [line.split() for line in done.stdout.splitlines() if "  ./" in line]
    assert digest_tree(small_model) == {name.removeprefix("./"): digest for digest, name in sums}
    assert "Read-only file system" in done.stderr
