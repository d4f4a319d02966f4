"""The Controller service: decode, call, encode. No decisions."""

from __future__ import annotations

from typing import Final

import grpc

from csi import creations
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from csi.provisioner import Provisioner
from csi.redaction import clean
from csi.slots import Slots, waiting_limit_s

_CAPABILITIES: Final = (pb.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME,)


class Controller(rpc.ControllerServicer):
    def __init__(self, provisioner: Provisioner, slots: Slots) -> None:
        self._provisioner = provisioner
        self._slots = slots

    def CreateVolume(  # noqa: N802  (named by the protocol, as all below)
        self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> pb.CreateVolumeResponse:
        """Without a capacity: the model's size is no promise of room, and external-provisioner takes the claim's own then."""
        wanted = creations.create(request)
        with self._slots.taken():
            volume = self._provisioner.create(wanted, waiting_limit_s(context))
        return pb.CreateVolumeResponse(volume=pb.Volume(volume_id=volume.volume_id, volume_context=volume.context))

    def DeleteVolume(  # noqa: N802
        self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> pb.DeleteVolumeResponse:
        """The model stays in its registry, and what nodes have of it in their caches is theirs to evict."""
        del context
        creations.delete(request)
        return pb.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(  # noqa: N802
        self, request: pb.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        del context
        wanted = creations.validate(request)
        with self._slots.taken():
            refusal = self._provisioner.confirm(wanted)
        if refusal:
            return pb.ValidateVolumeCapabilitiesResponse(message=clean(refusal))
        confirmed = pb.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return pb.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ControllerGetCapabilities(  # noqa: N802
        self, request: pb.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetCapabilitiesResponse:
        del request, context
        return pb.ControllerGetCapabilitiesResponse(
            capabilities=[
                pb.ControllerServiceCapability(rpc=pb.ControllerServiceCapability.RPC(type=kind))
                for kind in _CAPABILITIES
            ]
        )
