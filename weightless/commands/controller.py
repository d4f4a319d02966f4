"""`weightless csi --mode controller`: makes volumes for claims. No root, no FUSE, no cache, no other process."""

from __future__ import annotations

import contextlib
import threading

from csi.controller_plugin import ControllerPlugin, ControllerSettings
from csi.kubernetes.annotations import CLAIMS
from csi.provisioner import Provisioner
from fuse import logs
from fuse.fetch.pinning import Pinner
from weightless import wiring
from weightless.options import Settings
from weightless.signals import signals_call


def run(settings: Settings, *, endpoint: str | None, metrics_address: str | None) -> None:
    """Serves until SIGTERM. Raises InvalidRequest, InvalidConfig, Conflict."""
    section = settings.config.controller
    plugin_settings = ControllerSettings(
        endpoint=wiring.needed(endpoint or section.endpoint, "--endpoint", "unix:///csi/csi.sock"),
        metrics_address=metrics_address or section.metrics_address or None,
    )
    logs.configure("controller", settings.log_level if settings.log_level_given else "info")
    # What a claim's author may choose is a reference: no more addresses than a pod's author may.
    access = wiring.access_reader(settings, local_allowed=False)
    ended = threading.Event()
    with contextlib.closing(Pinner()) as pinner:
        provisioner = Provisioner(pinner=pinner, access=access, annotations=CLAIMS.annotations)
        plugin = ControllerPlugin(plugin_settings, provisioner)
        with signals_call(ended.set):
            plugin.start()
            try:
                ended.wait()
            finally:
                plugin.stop()
