"""The Node service: decode, call, encode. No decisions."""

from __future__ import annotations

from typing import Final

import grpc

from csi import facts, requests
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from csi.publisher import Publisher
from csi.recovery import Mender
from csi.redaction import clean
from csi.slots import Slots, waiting_limit_s
from csi.targets import TargetRules
from csi.volumes import VolumeRecord
from fuse.errors import NotFound

_CAPABILITIES: Final = (
    pb.NodeServiceCapability.RPC.GET_VOLUME_STATS,
    pb.NodeServiceCapability.RPC.VOLUME_CONDITION,
)


class Node(rpc.NodeServicer):
    def __init__(
        self,
        *,
        node_id: str,
        max_volumes: int,
        publisher: Publisher,
        rules: TargetRules,
        mender: Mender,
        slots: Slots,
    ) -> None:
        self._node_id = node_id
        self._max_volumes = max_volumes
        self._publisher = publisher
        self._rules = rules
        self._mender = mender
        self._slots = slots

    def NodePublishVolume(  # noqa: N802  (named by the protocol, as all below)
        self, request: pb.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodePublishVolumeResponse:
        wanted = requests.publish(request, self._rules)
        with self._slots.taken():
            self._publisher.publish(wanted, waiting_limit_s(context))
        self._note(self._publisher.find(wanted.key))
        return pb.NodePublishVolumeResponse()

    def NodeUnpublishVolume(  # noqa: N802
        self, request: pb.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.NodeUnpublishVolumeResponse:
        key = requests.unpublish(request, self._rules)
        self._note(self._publisher.find(key))
        self._publisher.unpublish(key, waiting_limit_s(context))
        return pb.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(  # noqa: N802
        self, request: pb.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetVolumeStatsResponse:
        """From memory: the file system itself is not asked, it may be waiting for a registry."""
        del context
        key = requests.stats(request, self._rules)
        record = self._publisher.find(key) if key is not None else None
        if record is None:
            raise NotFound(
                f"volume {request.volume_id!r:.200} is not published there",
                where=f"{request.volume_path!r:.300}",
                fix="publish it first",
            )
        health = self._mender.health(record)
        return pb.NodeGetVolumeStatsResponse(
            usage=[
                pb.VolumeUsage(unit=pb.VolumeUsage.BYTES, total=record.bytes_total, used=record.bytes_total),
                pb.VolumeUsage(unit=pb.VolumeUsage.INODES, total=record.files, used=record.files),
            ],
            volume_condition=pb.VolumeCondition(
                # It becomes an event of the pod: one line, and nothing in it that only the node may know. Longer than what CSI
                # lets a text be in general (128 bytes), for it says what a person should do.
                abnormal=health.state != "healthy",
                message=clean(health.sentence()),
            ),
        )

    def NodeGetCapabilities(  # noqa: N802
        self, request: pb.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetCapabilitiesResponse:
        del request, context
        return pb.NodeGetCapabilitiesResponse(
            capabilities=[
                pb.NodeServiceCapability(rpc=pb.NodeServiceCapability.RPC(type=kind)) for kind in _CAPABILITIES
            ]
        )

    def NodeGetInfo(  # noqa: N802
        self, request: pb.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetInfoResponse:
        del request, context
        return pb.NodeGetInfoResponse(node_id=self._node_id, max_volumes_per_node=self._max_volumes)

    def _note(self, record: VolumeRecord | None) -> None:
        """For the line that the log has of this call."""
        if record is not None:
            facts.add(
                pod=record.pod,
                reference=record.reference,
                digest=record.pinned.rpartition("@")[2],
                served_by=self._publisher.served_by(record),
                bytes_total=record.bytes_total,
                files=record.files,
            )
