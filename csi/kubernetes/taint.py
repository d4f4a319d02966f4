"""Takes the agent-not-ready taint off this node, once kubelet knows the driver.

A fresh node can carry a taint that keeps pods away until their volumes can be mounted: a pod that comes earlier waits for minutes
in kubelet's retries. Kubelet knows a driver when the node's CSINode lists it. The taint is removed by a patch that first tests
that it is still at its place in the list, so that what others add or remove meanwhile is never written over; a patch that fails
its test is made anew from a fresh look.
"""

from __future__ import annotations

import threading
from typing import Any, Final, Protocol
from urllib.parse import quote

import structlog

from csi.identity import DRIVER_NAME
from fuse.errors import Conflict, InvalidRequest, WeightlessError

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0

_log = structlog.get_logger()


class Api(Protocol):
    """What is needed of `csi.kubernetes.api.ApiServer`."""

    def get(self, path: str) -> dict[str, Any]: ...

    def patch(self, path: str, operations: list[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


def is_registered(csi_node: dict[str, Any]) -> bool:
    """Whether a CSINode lists our driver."""
    drivers = _list(csi_node, "drivers")
    return any(isinstance(driver, dict) and driver.get("name") == DRIVER_NAME for driver in drivers)


def removal(node: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The JSON patch that takes the taints with this key off a Node, whatever their effect; empty where there is none."""
    operations: list[dict[str, Any]] = []
    taints = _list(node, "taints")
    # From the end, so that a removal moves none that is still to be removed.
    for index in reversed(range(len(taints))):
        taint = taints[index]
        if isinstance(taint, dict) and taint.get("key") == key:
            place = f"/spec/taints/{index}"
            operations += [{"op": "test", "path": place, "value": taint}, {"op": "remove", "path": place}]
    return operations


def _list(document: dict[str, Any], name: str) -> list[Any]:
    spec = document.get("spec")
    found = spec.get(name) if isinstance(spec, dict) else None
    return found if isinstance(found, list) else []


class TaintRemover:
    """One thread, which ends when the taint is gone. `close` ends it before."""

    def __init__(self, api: Api, *, node: str, key: str, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        self._api = api
        self._node = node
        self._name = quote(node, safe="")
        self._key = key
        self._first_pause_s = first_pause_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        pause_s, told = self._first_pause_s, ""
        try:
            while not self._closing.is_set():
                try:
                    if self._try():
                        return
                except WeightlessError as error:
                    if error.kind != told:
                        told = error.kind
                        _log.warning("taint_not_removed", key=self._key, node=self._node, error=error)
                self._closing.wait(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
        except Exception:  # noqa: BLE001  (the edge of a thread)
            _log.exception("taint_failed")
        finally:
            self._api.close()

    def _try(self) -> bool:
        """Whether nothing is left to do."""
        if not is_registered(self._api.get(f"/apis/storage.k8s.io/v1/csinodes/{self._name}")):
            return False
        path = f"/api/v1/nodes/{self._name}"
        operations = removal(self._api.get(path), self._key)
        if operations:
            try:
                self._api.patch(path, operations)
            except (Conflict, InvalidRequest):
                _log.info("taint_moved", key=self._key, node=self._node)
                return False
            _log.info("taint_removed", key=self._key, node=self._node)
        return True
