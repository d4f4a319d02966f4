"""What a driver has left on a node: looked for in the machine that the node is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.waiting import until

_KUBELET: Final = "/var/lib/kubelet/"
_DIRECTORIES: Final = ("/var/lib/weightless", "/run/weightless-keeper", "/var/lib/kubelet/plugins/csi.weightless.dev")
_PROGRAMS: Final = (b"/opt/weightless/", b"fuse.worker", b"fuse.fetch", b"fuse.keeper")


class Residue:
    """Everything is read from /proc: a dead mount would hang who asks it."""

    def mounts(self) -> list[str]:
        """File systems of the driver below kubelet's directory."""
        found = []
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            kind = fields[fields.index("-") + 1]
            if fields[4].startswith(_KUBELET) and (
                "kubernetes.io~csi" in fields[4] or "/plugins/" in fields[4] or kind.startswith("fuse")
            ):
                found.append(f"{fields[4]} ({kind})")
        return found

    def of_pods(self, uids: Sequence[str]) -> list[str]:
        return [mount for mount in self.mounts() if any(f"/pods/{uid}/" in mount for uid in uids)]

    def none(self) -> None:
        """The driver has gone, with all that it started and mounted."""
        until(lambda: not self.processes(), "no process of the driver is left", within_s=30)
        assert self.mounts() == []

    def files(self) -> list[str]:
        """What is in the driver's own directories."""
        return [str(path) for directory in _DIRECTORIES for path in Path(directory).rglob("*")]

    def processes(self) -> list[str]:
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                with suppress(OSError):
                    command = (process / "cmdline").read_bytes()
                    if any(program in command for program in _PROGRAMS):
                        found.append(command.replace(b"\0", b" ").decode(errors="replace").strip())
        return found
