"""`weightless csi --mode node` and `all`: runs the CSI node plugin, by itself or with the controller beside it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fuse import tracing
from fuse.errors import WeightlessError
from fuse.mounting import control
from fuse.mounting.access import AccessReader
from fuse.mounting.fetcher import FetcherClient
from fuse.mounting.mounts import Mounts
from fuse.mounting.values import HolderSettings
from fuse.spec import WithoutResend
from weightless import wiring
from weightless.holder import NODE
from weightless.options import Settings
from weightless.signals import signals_call

if TYPE_CHECKING:
    from csi.provisioner import Provisioner

_KUBELET: Final = Path("/var/lib/kubelet")
_STATE: Final = Path("/var/lib/weightless")


def run(
    settings: Settings,
    *,
    endpoint: str | None,
    node_id: str | None,
    kubelet_dir: Path | None,
    state_dir: Path | None,
    metrics_address: str | None,
    keeper: str | None,
    max_volumes: int | None,
    without_resend: WithoutResend | None,
    with_controller: bool,
) -> None:
    """Serves until SIGTERM; published volumes stay mounted then. Raises InvalidConfig, Conflict, Missing."""
    section = settings.config.node
    level = settings.log_level if settings.log_level_given else "info"
    run_dir = wiring.begin(settings, "plugin", level=level)
    tracing.start("plugin")
    named = keeper or section.keeper
    state = _directory(state_dir, section.state_dir, _STATE)
    holder = wiring.holder_settings(
        settings,
        run_dir,
        name=NODE,
        log_to_stderr=True,
        log_level=level,
        keeper=wiring.socket_path(named, "--keeper") if named else None,
        native_dir=state / "native",
        spare_worker=True,
        without_resend=without_resend,
    )
    ended = threading.Event()
    # Children are started by fork and exec; gRPC's own fork handlers are of no use then, and complain. (Asked at import.)
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with _fetcher_ahead(holder) as taken_over:
        from csi.kubernetes.cluster import in_cluster
        from csi.kubernetes.presence import KubernetesSettings
        from csi.plugin import NodePlugin, PluginSettings  # takes a while, and so does the fetcher

        annotations = None
        if settings.config.kubernetes.service_account_annotations:
            from csi.kubernetes.annotations import ACCOUNTS

            annotations = ACCOUNTS.annotations
        access = wiring.access_reader(settings, local_allowed=False, annotations=annotations)
        plugin_settings = PluginSettings(
            endpoint=wiring.needed(
                endpoint or section.endpoint, "--endpoint", "unix:///var/lib/kubelet/plugins/…/csi.sock"
            ),
            node_id=wiring.needed(node_id or section.node_id, "--node-id", "the node's name in Kubernetes"),
            access=access,
            kubelet_dir=_directory(kubelet_dir, section.kubelet_dir, _KUBELET),
            state_dir=state,
            max_volumes=section.max_volumes if max_volumes is None else max_volumes,
            metrics_address=metrics_address or section.metrics_address or None,
            kubernetes=KubernetesSettings(
                cluster=in_cluster(),
                events=settings.config.kubernetes.events == "auto",
                remove_taint=settings.config.kubernetes.remove_taint,
            ),
        )
        manager = Mounts(holder)
        plugin = NodePlugin(plugin_settings, manager, _provisioner(manager, access) if with_controller else None)
        with signals_call(ended.set):
            plugin.start()
            manager.fetcher_wanted(then=taken_over.set)
            try:
                with contextlib.closing(control.ControlServer(manager, run_dir, NODE)):
                    ended.wait()
            finally:
                plugin.stop()
                tracing.stop()


@contextlib.contextmanager
def _fetcher_ahead(holder: HolderSettings) -> Iterator[threading.Event]:
    """Where a predecessor left a keeper, readers wait for us: has the fetcher started while the rest of this process is.

    It lives on once somebody else is connected to it: then the event is to be set.
    """
    taken_over = threading.Event()
    client = FetcherClient(holder.fetcher())

    def hold() -> None:
        with contextlib.suppress(WeightlessError):  # whoever really needs it says so
            client.connection()
        taken_over.wait()
        client.close()

    if (holder.keeper or holder.run_dir / f"{holder.name}.keeper").exists():
        threading.Thread(target=hold, name="fetcher-ahead", daemon=True).start()
    try:
        yield taken_over
    finally:
        taken_over.set()


def _provisioner(manager: Mounts, access: AccessReader) -> Provisioner:
    from csi.kubernetes.annotations import CLAIMS
    from csi.pinning import MountingPinner
    from csi.provisioner import Provisioner

    return Provisioner(pinner=MountingPinner(manager), access=access, annotations=CLAIMS.annotations)


def _directory(option: Path | None, configured: str | None, default: Path) -> Path:
    return (option or (Path(configured) if configured else default)).absolute()
