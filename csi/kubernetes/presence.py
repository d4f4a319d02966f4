"""The node plugin's side of Kubernetes, put together: what is to be told and done there, or nothing at all outside of a cluster.

Nothing waits for the API server, and nothing fails with it. httpx is imported only where there is something to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import structlog

from csi.identity import DRIVER_NAME
from csi.interceptors import Call
from csi.kubernetes.cluster import Cluster
from csi.kubernetes.recorder import Observer, Recorder
from csi.kubernetes.taint import TaintRemover
from csi.kubernetes.telling import LOOK_S, ConditionWatch, Teller, Volumes
from csi.volumes import VolumeRecord

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    cluster: Cluster | None = None
    """None: we do not run in one."""
    events: bool = True
    remove_taint: str = ""
    """The key of the taint that the node loses once kubelet knows the driver; empty: none."""


class Presence:
    """`start` it when the plugin serves, `close` it before what it tells of ends."""

    def __init__(self, settings: KubernetesSettings, *, node: str, observer: Observer, volumes: Volumes) -> None:
        self._settings = settings
        self._node = node
        self._observer = observer
        self._volumes = volumes
        self._running = ExitStack()
        self._teller: Teller | None = None

    def start(self) -> None:
        settings = self._settings
        if settings.cluster is None or not (settings.events or settings.remove_taint):
            return
        from csi.kubernetes.api import ApiServer  # 4 MB

        if settings.events:
            recorder = Recorder(
                ApiServer(settings.cluster), controller=DRIVER_NAME, instance=self._node, observer=self._observer
            )
            self._running.callback(recorder.close)
            self._teller = Teller(recorder.tell)
            self._running.callback(ConditionWatch(self._teller, self._volumes, LOOK_S).close)
        if settings.remove_taint:
            remover = TaintRemover(ApiServer(settings.cluster), node=self._node, key=settings.remove_taint)
            self._running.callback(remover.close)
        _log.info(
            "kubernetes_used", api_server=settings.cluster.url, events=settings.events, taint=settings.remove_taint
        )

    def close(self) -> None:
        self._teller = None
        self._running.close()

    def published(self, record: VolumeRecord, served_by: str) -> None:
        teller = self._teller
        if teller is not None:
            with _harmless():
                teller.published(record, served_by)

    def called(self, call: Call) -> None:
        """A call of kubelet has ended; told of is a publish that failed."""
        teller, request = self._teller, call.request
        if teller is not None and call.method == "NodePublishVolume" and call.error is not None:
            with _harmless():
                teller.refused(request.volume_id, request.target_path, request.volume_context, call.error, call.message)


@contextmanager
def _harmless() -> Iterator[None]:
    """Whatever is wrong with telling, the volume is none the worse for it."""
    try:
        yield
    except Exception:  # noqa: BLE001
        _log.exception("telling_failed")
