"""The node plugin as a process: what is started in which order, and how it ends. A controller may be served beside it.

Two plugins must not share kubelet's directory, a state directory or a socket: the first two are held by locks on the directories
themselves, the socket by `Server`. On SIGTERM no new call is taken, what is under way is cancelled or finished, and the mounts
are left to the keeper, unless no volume is published.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import structlog

from csi import mounts
from csi.controller import Controller
from csi.exposition import Exposition
from csi.identity import DRIVER_NAME, Identity
from csi.interceptors import Call, Guard
from csi.kubernetes.presence import KubernetesSettings, Presence
from csi.metrics import Metrics
from csi.mounts import Checkpoint, Manager, SharedMounts
from csi.node import Node
from csi.pb import csi_pb2_grpc as rpc
from csi.provisioner import Provisioner
from csi.publisher import AccessSource, Publisher
from csi.recovery import Mender, recover
from csi.renewal import LOOK_S, Renewals
from csi.server import Server, is_served, socket_path
from csi.slots import Slots
from csi.targets import TargetRules
from csi.volumes import VolumeRecord, VolumeRecords
from fuse.disk import unusable
from fuse.errors import Conflict, InvalidConfig
from fuse.mounting.reasons import Reason
from fuse.mounting.status import Health, MountStatus

_SERVED_LIMIT_S: Final = 20.0
"""How long a start waits for its predecessor's mounts to be served. What is not by then has a condition that says why."""
_GRACE_S: Final = 10.0
"""Kubernetes gives 30 s between SIGTERM and SIGKILL."""
_MAX_NODE_ID_BYTES: Final = 256

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """What `weightless csi` was told of the node."""

    endpoint: str
    node_id: str
    access: AccessSource
    """How registries are reached: `fuse.mounting.access.AccessReader`, with loopback addresses forbidden."""
    kubelet_dir: Path = Path("/var/lib/kubelet")
    state_dir: Path = Path("/var/lib/weightless")
    max_volumes: int = 0
    """Reported to the scheduler; 0 means no limit."""
    metrics_address: str | None = None
    """`host:port` or `:port` for Prometheus; None serves no metrics."""
    renewal_look_s: float = LOOK_S
    """How often credentials are looked at that end or change (`csi.renewal`)."""
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    checkpoint: Checkpoint = lambda _: None
    """Called after every step of a publish or unpublish with its name, for tests."""


class NodePlugin:
    """One node plugin: `start` it, and `stop` it when the process is told to end."""

    def __init__(self, settings: PluginSettings, manager: Manager, provisioner: Provisioner | None = None) -> None:
        self._provisioner = provisioner
        self._path = socket_path(settings.endpoint)
        if not 0 < len(settings.node_id.encode()) <= _MAX_NODE_ID_BYTES:
            raise InvalidConfig(f"must have 1 to {_MAX_NODE_ID_BYTES} bytes", where="node id", fix="see --node-id")
        if settings.max_volumes < 0:
            raise InvalidConfig("must not be negative", where="max volumes", fix="0 means no limit")
        self._settings = settings
        self._manager = manager
        self._rules = TargetRules(settings.kubelet_dir)
        self._records = VolumeRecords(settings.state_dir)
        self.mounts_dir = self._rules.root / "plugins" / DRIVER_NAME / "mounts"
        self._shared = SharedMounts(manager, self.mounts_dir)
        self._publisher = Publisher(
            records=self._records,
            shared=self._shared,
            access=settings.access,
            rules=self._rules,
            checkpoint=settings.checkpoint,
        )
        self._mender = Mender(self._publisher)
        self._publisher.on_unfinished = lambda record: self._mender.add(
            record, Reason.RECOVERING, "it is being taken away"
        )
        self._renewals = Renewals(
            self._publisher, self._publisher.admissions, settings.access, look_s=settings.renewal_look_s
        )
        manager.on_gone = self._mount_gone
        self._metrics = Metrics(manager, self._volumes)
        self._exposition = (
            Exposition(settings.metrics_address, self._metrics.registry) if settings.metrics_address else None
        )
        self._presence = Presence(
            settings.kubernetes, node=settings.node_id, observer=self._metrics, volumes=self._conditions
        )
        self._publisher.on_published = lambda record: self._presence.published(
            record, self._publisher.served_by(record)
        )
        self._server = Server(self._path, self._register, Guard(self._called))
        self._locks = ExitStack()
        self._ready = False

    def start(self) -> None:
        """Locks, brings back what was published, and serves."""
        if is_served(self._path):
            # Said before anything is touched; `Server.start` asks again under its lock.
            raise Conflict("another node plugin serves this socket", where=str(self._path), fix="stop it first")
        with ExitStack() as undo:
            undo.callback(self._locks.close)
            self._lock(self._settings.state_dir)
            self._lock(self.mounts_dir)
            self._records.load()
            if self._exposition is not None:
                # Bound before anything is mounted, in case the address is wrong.
                self._exposition.bind()
                undo.callback(self._exposition.close)
            # Mounts that nobody unmounted: a keeper of its own, if that is what there is, is worth waiting for.
            self._manager.start(patient=bool(mounts.binds_below(self.mounts_dir)))
            undo.callback(self._close_manager)
            if self._exposition is not None:
                self._exposition.serve()
            undo.callback(self._mender.close)
            undo.callback(self._renewals.close)
            undo.callback(self._publisher.operations.end)  # first, as in `stop`: what waits for a registry gives up
            recover(self._publisher, self._shared, self._rules, self._mender)
            # Who is told that we are ready may send pods at once; those of before come first.
            self._manager.wait_served(_SERVED_LIMIT_S)
            self._renewals.start()
            self._server.start()
            self._presence.start()
            undo.pop_all()
        self._ready = True
        _log.info("plugin_started", socket=str(self._path), volumes=len(self._records.all()))

    def stop(self) -> None:
        """Ends in the order in which things depend on each other. Published volumes stay mounted."""
        self._ready = False
        # First what is under way: only then can the calls that wait for it return. All at once: they have one time of grace.
        grace_ends_at = time.monotonic() + _GRACE_S
        if self._provisioner is not None:
            self._provisioner.end()
        finished = self._publisher.operations.close(_GRACE_S)
        if self._provisioner is not None:
            finished &= self._provisioner.close(max(0.0, grace_ends_at - time.monotonic()))
        self._server.stop(_GRACE_S)
        self._presence.close()
        self._mender.close()
        self._renewals.close()
        if self._exposition is not None:
            self._exposition.close()
        self._close_manager()
        self._locks.close()
        _log.info("plugin_stopped", volumes=len(self._records.all()), finished=finished)

    def _mount_gone(self, status: MountStatus) -> None:
        """The kernel has ended a mount that nobody here unmounted."""
        for record in self._records.all():
            if record.identity == status.id and record.stage == "published":
                self._mender.add(
                    record, Reason.UNMOUNTED, "the kernel has ended the file system: it was unmounted, or aborted"
                )

    def _called(self, call: Call) -> None:
        self._metrics.observe_call(call.method, call.code, call.duration_s)
        self._presence.called(call)

    def _conditions(self) -> list[tuple[VolumeRecord, Health]]:
        """Of every published volume, from memory."""
        published = [record for record in self._records.all() if record.stage == "published"]
        return [(record, self._mender.health(record)) for record in published]

    def _volumes(self) -> list[Health]:
        return [health for _, health in self._conditions()]

    def _close_manager(self) -> None:
        self._manager.close(keep=bool(self._records.all()))

    def _register(self, server: grpc.Server) -> None:
        rpc.add_IdentityServicer_to_server(Identity(lambda: self._ready), server)
        slots = Slots()
        node = Node(  # type: ignore[abstract]  # what is not offered is left to the generated base, which says so
            node_id=self._settings.node_id,
            max_volumes=self._settings.max_volumes,
            publisher=self._publisher,
            rules=self._rules,
            mender=self._mender,
            slots=slots,
        )
        rpc.add_NodeServicer_to_server(node, server)
        if self._provisioner is not None:
            controller = Controller(self._provisioner, slots)  # type: ignore[abstract]  # likewise
            rpc.add_ControllerServicer_to_server(controller, server)

    def _lock(self, directory: Path) -> None:
        """Holds the directory, which is made if missing, for the life of this plugin. Raises Conflict or InvalidConfig."""
        try:
            # Parents first: mkdir gives `mode` to the last one only, and the socket lies beside the mounts.
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise unusable(error, "the plugin's directory", directory, choice="--state-dir, --kubelet-dir") from error
        self._locks.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                "another node plugin uses this directory", where=str(directory), fix="stop it first"
            ) from error
