"""SELinux: the label that a mount gives all its files, and what this node says of SELinux.

A file system has one label, that of its superblock, so a bind mount has its source's. Without one of ours, files have what the
node's policy says of FUSE (`fusefs_t`), or of what a process makes in memory, for native mounts: whether containers may read that
differs, and kubelet has the latter relabelled, in vain (docs/selinux.md). Nothing here mounts; all is safe for threads.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from fuse.errors import InvalidRequest, Missing

FOR_CONTAINERS: Final = "system_u:object_r:container_file_t:s0"
"""What all containers may read, for it has no categories: in container-selinux, which Fedora, RHEL, OpenShift and CoreOS have."""

_PROC: Final = Path("/proc")
_SELINUXFS: Final = Path("/sys/fs/selinux")
_MAX_CHARACTERS: Final = 255
_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_LEVEL: Final = r"[A-Za-z0-9_]+(?::[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)?(?:,[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)?)*)?"
_LABEL: Final = re.compile(rf"{_NAME}:{_NAME}:{_NAME}(?::{_LEVEL}(?:-{_LEVEL})?)?")


def parse(text: str) -> str:
    """`text`, if it has the form user:role:type[:range]: no character of it could end a mount option. Raises InvalidRequest.

    Whether a policy knows it is for the kernel to say.
    """
    if len(text) > _MAX_CHARACTERS or not _LABEL.fullmatch(text):
        raise InvalidRequest("it is no SELinux context", fix=f"write user:role:type:level, as in {FOR_CONTAINERS}")
    return text


def option(label: str) -> str:
    """What makes `label` that of all files, in the options of mount(2). Raises Missing where SELinux is off.

    In quotes: the kernel's parser (`selinux_sb_eat_lsm_opts`) ends an option at the comma between two categories otherwise.
    """
    if not label:
        return ""
    if not active():
        raise Missing(
            "SELinux is off on this node, so no file system can be given a label",
            where=label,
            fix="leave the option context= out of mountOptions and --selinux-context away, or turn SELinux on",
        )
    return f',context="{label}"'


def refused(number: int, label: str) -> tuple[str, str]:
    """What it means, and what to do, when mount(2) fails with this errno and a label was asked for; empty: nothing special."""
    if label and number == errno.EINVAL:
        return (
            f"the kernel does not take the SELinux context {label}",
            f"use one that the node's policy has, such as {FOR_CONTAINERS}; weightless doctor on the node says whether it does",
        )
    if label and number == errno.EACCES:
        return (
            f"SELinux does not let this process mount with the context {label}",
            "run the plugin as spc_t (the chart's seLinuxOptions), or see the denial: ausearch -m avc -ts recent",
        )
    return "", ""


def active() -> bool:
    """Whether the kernel runs SELinux with a policy. /sys/fs/selinux cannot tell: containers often do not have it."""
    try:
        known = "selinuxfs" in (_PROC / "filesystems").read_text().split()
        # "kernel" as long as no policy is loaded; other security modules answer without colons, or not at all.
        return known and (_PROC / "self/attr/current").read_text().count(":") >= 2
    except OSError:
        return False


def enforcing() -> bool | None:
    """None where that cannot be seen, as in a container."""
    try:
        return (_SELINUXFS / "enforce").read_text().strip() == "1"
    except OSError:
        return None


def knows(label: str) -> bool | None:
    """Whether the policy has this label; None where it cannot be asked."""
    try:
        fd = os.open(_SELINUXFS / "context", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, label.encode() + b"\0")
        finally:
            os.close(fd)
    except OSError as error:
        return False if error.errno == errno.EINVAL else None
    return True
