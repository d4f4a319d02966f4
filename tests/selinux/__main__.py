"""`make selinux-test`: boots a machine whose kernel enforces SELinux, and lets the driver mount models for containers there.

Arguments go to pytest, in the machine.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from tests.selinux import machine


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0 or platform.machine() != "x86_64":
        raise SystemExit("making a root file system needs root, and the machine is an x86-64 one as this has to be")
    with tempfile.TemporaryDirectory(prefix="weightless-selinux-", dir=os.environ.get("TMPDIR", "/var/tmp")) as root:
        made = machine.make(Path(root), arguments or ["tests/selinux"])
        return machine.run(made)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
