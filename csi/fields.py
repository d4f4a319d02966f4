"""Fields that requests of several calls have: missing, oversized, or asking for what a model cannot give.

Pure. Identifiers are opaque: they are bounded and free of control characters.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from csi.pb import csi_pb2 as pb
from fuse.errors import InvalidRequest
from fuse.mounting import selinux

CALLER: Final = "Kubernetes always sends it: correct what calls in its place"
WHITE_SPACE: Final = frozenset("\t\n\r")
"""Control characters that CSI lets the name of a new volume have."""
_MAX_ID_BYTES: Final = 1024
"""CSI says 128; kubelet sends volume handles of PersistentVolumes as they are, and lengths are no danger to us."""
_HARMLESS_FLAGS: Final = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"})
"""Mount options of a PersistentVolume that are in force anyway."""
_CONTEXT: Final = "context="
_CAPABILITY: Final = "volume_capability"


def required(field: str, text: str) -> None:
    if not text:
        raise InvalidRequest("it is missing", where=field, fix=CALLER)


def identifier(field: str, text: str, *, harmless: frozenset[str] = frozenset()) -> str:
    """`text`, if it can name something; `harmless` are control characters that may be in it. Raises InvalidRequest."""
    required(field, text)
    if len(text.encode()) > _MAX_ID_BYTES:
        raise InvalidRequest(f"longer than {_MAX_ID_BYTES} bytes", where=field, fix="use a shorter one")
    if any(unicodedata.category(character) == "Cc" for character in set(text) - harmless):
        raise InvalidRequest("holds control characters", where=field, fix="use another one")
    return text


def complete(asked: pb.VolumeCapability) -> None:
    """Raises InvalidRequest for a capability that says too little to be given or refused."""
    if asked.WhichOneof("access_type") is None:
        raise InvalidRequest("access type is missing", where=_CAPABILITY, fix="set mount")
    if asked.access_mode.mode == pb.VolumeCapability.AccessMode.UNKNOWN:
        raise InvalidRequest("access mode is missing", where=_CAPABILITY, fix="use ReadOnlyMany")


def capability(asked: pb.VolumeCapability) -> int:
    """The access mode. Writers are let in, since callers ask for them by default; what they get is read-only.

    Raises InvalidRequest for what is incomplete, or what a model cannot give.
    """
    complete(asked)
    if asked.access_mode.mode not in pb.VolumeCapability.AccessMode.Mode.values():
        # Of a later CSI: nobody here knows what it promises.
        number = int(asked.access_mode.mode)
        raise InvalidRequest(f"access mode {number} is not known", where=_CAPABILITY, fix="use ReadOnlyMany")
    if asked.HasField("block"):
        raise InvalidRequest("a model is not a block device", where=_CAPABILITY, fix="use volumeMode: Filesystem")
    flags = [flag for flag in asked.mount.mount_flags if flag not in _HARMLESS_FLAGS and not flag.startswith(_CONTEXT)]
    label(asked)
    if flags:
        # The flags themselves may be sensitive (CSI), so they are not repeated.
        raise InvalidRequest(
            f"{len(flags)} of the mount options are not supported",
            where=_CAPABILITY,
            fix=f"leave mountOptions out but for an SELinux context=; harmless are {', '.join(sorted(_HARMLESS_FLAGS))}",
        )
    if asked.mount.volume_mount_group:
        raise InvalidRequest("volume_mount_group is not supported", where=_CAPABILITY, fix="use fsGroupPolicy: None")
    return int(asked.access_mode.mode)


def label(asked: pb.VolumeCapability) -> str:
    """The SELinux context among the mount options, or nothing: kubelet's (CSIDriver's seLinuxMount), or a PersistentVolume's.

    Raises InvalidRequest for what is none, and for two that differ; like all flags they are not repeated.
    """
    given = {flag.removeprefix(_CONTEXT) for flag in asked.mount.mount_flags if flag.startswith(_CONTEXT)}
    # kubelet writes quotes (util.AddSELinuxMountOption), for the comma between two categories.
    found = {text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text for text in given}
    where = f"{_CAPABILITY}, mount option {_CONTEXT}"
    if len(found) > 1:
        raise InvalidRequest(
            f"{len(found)} SELinux contexts are asked for, and a mount has one",
            where=where,
            fix="leave context= out of mountOptions where CSIDriver.spec.seLinuxMount is true",
        )
    try:
        return selinux.parse(found.pop()) if found else ""
    except InvalidRequest as error:
        raise error.again(where=where) from None
