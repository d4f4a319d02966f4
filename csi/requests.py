"""Requests of the Node service as values: checked once, here, so that nothing behind it asks again.

Pure. Identifiers never become part of a path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from csi import attributes, fields, given
from csi.attributes import Attributes
from csi.fields import CALLER, capability, identifier, required
from csi.pb import csi_pb2 as pb
from csi.targets import Target, TargetRules
from fuse.credentials.given import Given
from fuse.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeKey:
    """One volume at one place."""

    volume_id: str
    target: Target

    @property
    def name(self) -> str:
        """A file name for this key: a hash, since an identifier comes from outside."""
        content = f"{self.volume_id}\0{self.target.path}".encode()
        return hashlib.sha256(content).hexdigest()[:40]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """Two requests are the same when they are equal, secrets included."""

    key: VolumeKey
    attributes: Attributes
    access_mode: int
    readonly: bool
    secrets: Mapping[str, str] = field(repr=False)
    """As they came; see `given`."""
    label: str = ""
    """The SELinux context that the mount is to have; empty: the node's own setting."""
    said: Mapping[str, str] = field(repr=False, compare=False)
    """What kubelet says of the pod and its tokens: those of a repeated request may be newer."""
    pod: str = field(default="", compare=False)
    """Namespace and name, for logs."""

    def given(self) -> Given:
        """What it brings to show to registries. Raises InvalidRequest."""
        return given.parse(self.secrets, self.said)

    @property
    def parameters(self) -> str:
        """What must be equal for a repeated publish of a published volume; secrets are not part of it (CSI, NodePublish)."""
        view = self.attributes.view
        content: tuple[object, ...] = (
            self.attributes.reference,
            view.exclude,
            view.exclude_weights,
            self.attributes.prefetch,
            self.access_mode,
            self.readonly,
        )
        if self.attributes.verify != "lazy":  # records of versions that knew nothing else must still be equal
            content += (self.attributes.verify,)
        if self.attributes.native != "auto":
            content += (f"native={self.attributes.native}",)
        if self.label:
            content += (f"label={self.label}",)
        return hashlib.sha256(repr(content).encode()).hexdigest()


def publish(request: pb.NodePublishVolumeRequest, rules: TargetRules) -> PublishRequest:
    """Raises InvalidRequest or InvalidReference."""
    volume_id = identifier("volume_id", request.volume_id)
    required("target_path", request.target_path)
    if not request.HasField("volume_capability"):
        raise InvalidRequest("volume_capability is missing", where="NodePublishVolume", fix=CALLER)
    mode = capability(request.volume_capability)
    key = VolumeKey(volume_id=volume_id, target=rules.parse(request.target_path))
    context = dict(request.volume_context)
    secrets, said = given.apart(request.secrets, context)
    pod = "/".join(context.get(f"csi.storage.k8s.io/pod.{part}", "") for part in ("namespace", "name"))
    return PublishRequest(
        key=key,
        attributes=attributes.parse(context),
        access_mode=mode,
        readonly=request.readonly,
        secrets=secrets,
        label=fields.label(request.volume_capability),
        said=said,
        pod=pod.strip("/"),
    )


def unpublish(request: pb.NodeUnpublishVolumeRequest, rules: TargetRules) -> VolumeKey:
    """Raises InvalidRequest."""
    volume_id = identifier("volume_id", request.volume_id)
    required("target_path", request.target_path)
    return VolumeKey(volume_id=volume_id, target=rules.parse(request.target_path))


def stats(request: pb.NodeGetVolumeStatsRequest, rules: TargetRules) -> VolumeKey | None:
    """None when the path cannot be a target at all: then no volume is there (NOT_FOUND, also for a relative path).

    Raises InvalidRequest when a field is missing.
    """
    volume_id = identifier("volume_id", request.volume_id)
    required("volume_path", request.volume_path)
    try:
        return VolumeKey(volume_id=volume_id, target=rules.parse(request.volume_path))
    except InvalidRequest:
        return None
