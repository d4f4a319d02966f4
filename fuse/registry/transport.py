"""What all repositories of a process share: connections, TLS contexts, tokens, proxies, redirects, the health of mirrors.

Thread-safe. Make one, close it at the end.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from types import TracebackType
from typing import Final, Self

from fuse.registry.access import Access, Endpoint
from fuse.registry.auth import Authorizer, Authorizers
from fuse.registry.control import ControlClient
from fuse.registry.dial import Dialer
from fuse.registry.health import Health
from fuse.registry.proxies import ProxyPolicy
from fuse.registry.ranges import RangeClient
from fuse.registry.route import Route, Routes
from fuse.registry.tls import TlsContexts

USER_AGENT: Final = "weightless"
REDIRECT_LIFE_S: Final = 300.0
"""How long a redirect is followed without asking the registry again: signed URLs live longer (10 to 60 minutes), and credentials
that were taken away stop working after it."""
_MAX_REDIRECTS_KEPT: Final = 4096


class Transport:
    """The network as one process sees it. `environment` is where the proxies' variables are read from."""

    def __init__(self, *, environment: Mapping[str, str] | None = None, user_agent: str = USER_AGENT) -> None:
        proxies = ProxyPolicy(os.environ if environment is None else environment)
        contexts = TlsContexts()
        self._dialer = Dialer()
        self.control = ControlClient(self._dialer, contexts, proxies, user_agent)
        self.ranges = RangeClient(self._dialer, contexts, proxies, user_agent)
        self.redirects = Redirects()
        self.health = Health()
        self._authorizers = Authorizers(self.control)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def routes(self, access: Access, endpoint: Endpoint) -> Routes:
        return Routes(access, endpoint, self._dialer.reach)

    def authorizer(self, endpoint: Endpoint, repository: str, where: str, actions: str = "pull") -> Authorizer:
        return self._authorizers.authorizer(endpoint.url, repository, endpoint.credential, where, actions)

    def close_lane(self, lane: object) -> None:
        """Closes the idle connections that `open_blob` kept for `lane`."""
        self.ranges.close_lane(lane)

    def close(self) -> None:
        """Closes every idle connection. Streams that are open stay usable until they are closed."""
        self.ranges.close()
        self.control.close()


class Redirects:
    """Where blobs were found last. The key names endpoint, repository, credential and blob: nobody uses another's signature."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, tuple[Route, float]] = OrderedDict()

    def get(self, key: Hashable) -> Route | None:
        with self._lock:
            route, until = self._known.get(key, (None, 0.0))
            return route if until > time.monotonic() else None

    def put(self, key: Hashable, route: Route) -> None:
        with self._lock:
            self._known[key] = (route, time.monotonic() + REDIRECT_LIFE_S)
            self._known.move_to_end(key)
            if len(self._known) > _MAX_REDIRECTS_KEPT:
                self._known.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._known.pop(key, None)
