"""How a controller that runs in a node plugin's process asks a registry: through the data plane, as a publish does.

That process is privileged, and what comes from a registry is for the fetcher to parse. So the model is looked at as a whole;
where an index has one manifest for each architecture, the one of this machine is what the claim gets.
"""

from __future__ import annotations

import threading

from csi.mounts import Manager
from fuse.filesystem.table import View
from fuse.registry.access import Access


class MountingPinner:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def pin(self, reference: str, access: Access, cancel: threading.Event) -> str:
        return self._manager.resolve(reference, access, View(), cancel=cancel).reference
