"""The controller as a process of its own: no mounts, no cache, no privileges, and nothing that must outlive it.

Any number may run; external-provisioner's leader election decides which is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc
import structlog

from csi.controller import Controller
from csi.exposition import Exposition
from csi.identity import Identity
from csi.interceptors import Call, Guard
from csi.metrics import Metrics
from csi.pb import csi_pb2_grpc as rpc
from csi.provisioner import Provisioner
from csi.server import Server, socket_path
from csi.slots import Slots

_GRACE_S: Final = 10.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    endpoint: str
    metrics_address: str | None = None
    """`host:port` or `:port` for Prometheus; None serves no metrics."""


class ControllerPlugin:
    """`start` it, and `stop` it when the process is told to end."""

    def __init__(self, settings: ControllerSettings, provisioner: Provisioner) -> None:
        """Raises InvalidConfig."""
        self._provisioner = provisioner
        self._metrics = Metrics()
        self._exposition = (
            Exposition(settings.metrics_address, self._metrics.registry) if settings.metrics_address else None
        )
        self._server = Server(socket_path(settings.endpoint), self._register, Guard(self._observe))

    def start(self) -> None:
        """Raises InvalidConfig or Conflict."""
        if self._exposition is not None:
            self._exposition.bind()
            self._exposition.serve()
        try:
            self._server.start()
        except BaseException:
            self._close_exposition()
            raise
        _log.info("plugin_started", socket=str(self._server.path))

    def stop(self) -> None:
        """Gives up what is under way: who asked for it asks again."""
        finished = self._provisioner.close(_GRACE_S)
        self._server.stop(_GRACE_S)
        self._close_exposition()
        _log.info("plugin_stopped", finished=finished)

    def _observe(self, call: Call) -> None:
        self._metrics.observe_call(call.method, call.code, call.duration_s)

    def _close_exposition(self) -> None:
        if self._exposition is not None:
            self._exposition.close()

    def _register(self, server: grpc.Server) -> None:
        rpc.add_IdentityServicer_to_server(Identity(lambda: True), server)
        controller = Controller(self._provisioner, Slots())  # type: ignore[abstract]  # the rest is left to the generated base
        rpc.add_ControllerServicer_to_server(controller, server)
