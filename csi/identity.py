"""The Identity service: who this plugin is. Answers at once, whatever else is going on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from weightless import __version__

DRIVER_NAME: Final = "csi.weightless.dev"


class Identity(rpc.IdentityServicer):
    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    def GetPluginInfo(  # noqa: N802  (named by the protocol, as all below)
        self, request: pb.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginInfoResponse:
        del request, context
        return pb.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=__version__)

    def GetPluginCapabilities(  # noqa: N802
        self, request: pb.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginCapabilitiesResponse:
        """Of this version, whichever services this process runs: CSI wants the same answer from all of one version."""
        del request, context
        controller = pb.PluginCapability.Service(type=pb.PluginCapability.Service.CONTROLLER_SERVICE)
        return pb.GetPluginCapabilitiesResponse(capabilities=[pb.PluginCapability(service=controller)])

    def Probe(  # noqa: N802
        self, request: pb.ProbeRequest, context: grpc.ServicerContext
    ) -> pb.ProbeResponse:
        """Fails never for what a restart would not heal, such as a registry that does not answer: a failure makes the
        liveness probe kill the container."""
        del request, context
        return pb.ProbeResponse(ready=BoolValue(value=self._ready()))
