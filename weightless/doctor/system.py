"""Checks of the machine itself: kernel, FUSE, rights, mounts, clock. Pure: they judge what `examination` has read."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fuse.mounting import selinux
from fuse.mounting.mountinfo import MountTable
from weightless.doctor.finding import Finding, broken, ok, skipped, warning

_CAP_SYS_ADMIN: Final = 21
_LEAST_OPEN_FILES: Final = 4096
_BUILT_AT: Final = 1_764_547_200.0
"""2025-12-01: no machine that runs this program has an earlier time."""


class Feature(NamedTuple):
    name: str
    since: tuple[int, int]
    without: str


FEATURES: Final = (
    Feature("native mounts, seamless exchange of mounts", (6, 5), "whole models are served by FUSE, not by the kernel alone"),
    Feature(
        "FUSE resend",
        (6, 9),
        "reads that a worker held when it died wait for ever, or fail (without-resend = \"abort\")",
    ),
    Feature("id-mapped FUSE mounts", (6, 12), 'pods with hostUsers: false cannot be served'),
)  # fmt: skip
_LEAST: Final = (5, 4)


class SELinux(NamedTuple):
    active: bool
    enforcing: bool | None = None
    known: bool | None = None
    """Whether the policy has the label that is configured; None: it cannot be asked."""


def kernel(release: str) -> Iterator[Finding]:
    """`release` as uname gives it."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        yield warning("kernel", f"release {release!r:.60} is not understood", "see that it is Linux 6.9 or newer")
        return
    version = int(match[1]), int(match[2])
    if version < _LEAST:
        yield broken("kernel", f"Linux {release} is too old for FUSE as it is used here", "use Linux 6.9 or newer")
        return
    lacking = [feature for feature in FEATURES if version < feature.since]
    if not lacking:
        yield ok("kernel", f"Linux {release}")
    for feature in lacking:
        wanted = f"{feature.since[0]}.{feature.since[1]}"
        yield warning(
            "kernel", f"Linux {release} has no {feature.name}: {feature.without}", f"use Linux {wanted} or newer"
        )


def overlay(file_systems: str, *, root: bool) -> Finding:
    """`file_systems`: /proc/filesystems."""
    if not root:
        return skipped("overlay", "only root can have whole models shown by the kernel alone")
    if "overlay" in file_systems.split():
        return ok("overlay", "the kernel has it")
    what = "the kernel has no overlay file system loaded: whole models are served by FUSE"
    return warning("overlay", what, "modprobe overlay")


def fuse_device(path: Path, mode: int | None, refusal: int) -> Finding:
    """`mode`: None where there is no such file. `refusal`: the errno with which it cannot be opened, 0 where it can."""
    check = "FUSE device"
    if mode is None:
        cure = "modprobe fuse; in a container, mount the host's /dev, or run it privileged"
        return broken(check, f"{path} is not there", cure)
    if not stat.S_ISCHR(mode):
        return broken(check, f"{path} is no device", "remove it, then modprobe fuse")
    if refusal in (errno.ENODEV, errno.ENXIO):
        what = f"the kernel has no driver for {path}: {os.strerror(refusal)}"
        return broken(check, what, "modprobe fuse on the node; the device's number is 10, 229")
    if refusal:
        what = f"{path} cannot be opened: {os.strerror(refusal)}"
        return broken(check, what, f"chmod 0666 {path}; in a container, run it privileged")
    return ok(check, f"{path} can be opened")


def fusermount(path: str | None, mode: int, *, root: bool) -> Finding:
    if root:
        return skipped("fusermount3", "root mounts without it")
    if path is None:
        return broken(
            "fusermount3", "it is not installed, and only root mounts without it", "install the package fuse3"
        )
    if not mode & stat.S_ISUID:
        return broken("fusermount3", f"{path} is not setuid", f"chmod u+s {path}, or install the package fuse3 anew")
    return ok("fusermount3", path)


def rights(effective: str, *, root: bool) -> Finding:
    """`effective`: CapEff of /proc/self/status."""
    if not root:
        return skipped("rights", "not root: mounts are made by fusermount3, for this user alone")
    try:
        capabilities = int(effective, 16)
    except ValueError:
        return warning(
            "rights", f"capabilities {effective!r:.40} are not understood", "see that root has CAP_SYS_ADMIN"
        )
    if not capabilities >> _CAP_SYS_ADMIN & 1:
        return broken("rights", "root has no CAP_SYS_ADMIN here, and may not mount", "run the container privileged")
    return ok("rights", "root may mount")


def labels(seen: SELinux, label: str) -> Finding:
    """Whether containers may read what is mounted. `label`: selinux-context of the configuration, or empty."""
    check = "SELinux"
    if not seen.active:
        return skipped(check, "it is off")
    mode = {True: "enforcing", False: "permissive", None: "on"}[seen.enforcing]
    if label and seen.known is False:
        return broken(
            check, f"the policy of this node has no {label}: nothing can be mounted", f"use {selinux.FOR_CONTAINERS}"
        )
    if label:
        return ok(check, f"{mode}; models are mounted as {label}")
    return warning(
        check,
        f"{mode}, and models have no label: kubelet has native mounts relabelled, which fails, and containers may be denied",
        f'selinux-context = "{selinux.FOR_CONTAINERS}" in [mount] (seLinuxContext of the chart), unless kubelet gives labels '
        "(csiDriver.seLinuxMount)",
    )


def open_files(hard_limit: int) -> Finding:
    """Of descriptors; negative for no limit."""
    if 0 <= hard_limit < _LEAST_OPEN_FILES:
        return warning(
            "open files",
            f"a process may open {hard_limit} files: models of more blobs than a quarter of that are read uncached",
            f"raise the hard limit to {_LEAST_OPEN_FILES} or more (ulimit -Hn; LimitNOFILE of the container runtime)",
        )
    return ok("open files", "no limit" if hard_limit < 0 else f"up to {hard_limit}")


def propagation(kubelet_dir: Path, table: MountTable) -> Finding:
    """`kubelet_dir`: real, as the mount table names it."""
    entry = table.holding(kubelet_dir)
    if entry is None:
        return warning("propagation", f"the mount table does not have {kubelet_dir}", "see /proc/self/mountinfo")
    if not entry.shared:
        place = entry.mountpoint
        return broken(
            "propagation",
            f"{place}, in which {kubelet_dir} lies, is not shared: what is mounted there stays unseen in pods",
            f"mount --make-rshared {place} on the node; in the plugin's pod, mountPropagation: Bidirectional",
        )
    return ok("propagation", f"{kubelet_dir} is shared")


def leftovers(table: MountTable, served: Collection[str]) -> Iterator[Finding]:
    """`served`: where holders that answer have their mounts. A device that none of them knows is served by nobody."""
    ours = [entry for entry in table.entries if entry.ours and not entry.native]
    known = {entry.device for entry in ours if str(entry.mountpoint) in served}
    places: dict[str, Path] = {}
    for entry in ours:
        if entry.device not in known:
            places.setdefault(entry.device, entry.mountpoint)
    for place in places.values():
        yield warning(
            "leftover mount",
            f"{place} is mounted, and no process that can be asked answers for it: if it is no other user's, readers wait",
            f"start again what mounted it, or weightless unmount --lazy {place}",
        )
    if not places:
        yield ok("leftover mounts", "none")


def clock(now: float, *, synchronised: bool | None) -> Finding:
    """`synchronised`: what the kernel says of its clock; None where it says nothing."""
    if now < _BUILT_AT:
        return broken("clock", "it is years behind: no certificate is valid", "set it (timedatectl set-ntp true)")
    if synchronised is False:
        what = "the kernel says that it is not synchronised: certificates and tokens may seem invalid"
        return warning("clock", what, "run chrony or systemd-timesyncd on the node")
    return ok("clock", "synchronised" if synchronised else "it has a time that can be")
