"""Which mirrors are worth asking now, and how often the registry itself is asked in their place.

A mirror that failed is passed over for a while, then one request tries it again while the others go on passing it over. One that
says that it is asked too much (429) is no dead one: readers go round it, and what is fetched ahead of them waits, for a while.
The way round a mirror that fails is open to readers, and narrow for what is fetched ahead of them: on the day on which the
mirrors of all nodes fail at once, the registry behind them gets a few requests a second from each node. A mirror that just does
not have something (404: a peer-to-peer one that nobody has filled) is in good health, and costs nothing.
Thread-safe; the clock is injected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fuse.bucket import Bucket
from fuse.errors import Unavailable, WeightlessError
from fuse.registry.access import Endpoint

MIRROR_PAUSE_S: Final = 10.0
AWAY_S: Final = 30.0
"""How long a registry is not asked for its leave behind a mirror, since it could not be reached."""
CROWDED_S: Final = 1.0
"""How long a mirror is left alone that says it is asked too much, and not for how long."""
CROWDED_MOST_S: Final = 30.0
"""How long in a row that is waited for. Then it counts as one that failed: what is fetched ahead must get on somehow."""
DETOURS_PER_S: Final = 8.0
"""A request ahead of readers brings 8 to 64 MiB, so a node alone still gets what its link carries, or nearly."""
_LATER_MOST_S: Final = 1.0


class Later(Exception):
    """No error, as nothing has failed: what is fetched ahead of readers is to be asked for again in `after_s` seconds."""

    def __init__(self, after_s: float, why: str) -> None:
        super().__init__(why)
        self.after_s: Final = min(after_s, _LATER_MOST_S)


@dataclass(slots=True)
class _Trouble:
    until: float
    """When it is tried again."""
    crowded_since: float | None = None
    """It answers, and says that it is asked too much, since then."""


class Away:
    """Registries that could not be reached a moment ago, by URL."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    def may_ask(self, url: str) -> bool:
        """False for who is away. Whoever is the first to hear True after a pause tries it for all the others."""
        if url not in self._until:
            return True
        now = self._clock()
        with self._lock:
            if self._until.get(url, 0.0) > now:
                return False
            self._until[url] = now + AWAY_S
            return True

    def note(self, url: str) -> None:
        now = self._clock()
        with self._lock:
            self._until = {each: until for each, until in self._until.items() if until > now} | {url: now + AWAY_S}

    def clear(self, url: str) -> None:
        with self._lock:
            self._until.pop(url, None)


class Health:
    """Of the mirrors, by their URLs. The registry itself is always asked: there is nothing behind it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._troubles: dict[str, _Trouble] = {}
        self.away: Final = Away(clock)
        self._detours = Bucket(DETOURS_PER_S, DETOURS_PER_S, clock())
        self.on_failure: Callable[[Endpoint, str], None] = lambda _endpoint, _kind: None
        """Told of each attempt that failed, with the kind of its error: for who counts."""

    def may_ask(self, endpoint: Endpoint) -> bool:
        """False for a mirror in trouble. Whoever is the first to hear True after a pause tries it for all the others."""
        if endpoint.origin or endpoint.url not in self._troubles:
            return True
        now = self._clock()
        with self._lock:
            trouble = self._troubles.get(endpoint.url)
            if trouble is None or trouble.until <= now:
                if trouble is not None:
                    trouble.until = now + MIRROR_PAUSE_S
                return True
            return False

    def check_crowd(self, endpoint: Endpoint) -> None:
        """For what is fetched ahead of readers: raises Later while the mirror asks to be left alone."""
        now = self._clock()
        with self._lock:
            trouble = self._troubles.get(endpoint.url)
            if trouble is None or trouble.crowded_since is None or now - trouble.crowded_since > CROWDED_MOST_S:
                return
            after_s = max(0.0, trouble.until - now)
        raise Later(after_s, f"{endpoint.url} is asked too much")

    def take_detour(self) -> None:
        """For what is fetched ahead of readers, before the registry is asked in place of a mirror. Raises Later."""
        now = self._clock()
        with self._lock:
            wait_s = self._detours.wait_s(now)
            if not wait_s:
                self._detours.draw(1, now)
        if wait_s:
            raise Later(wait_s, "the mirrors fail, and the registry has been asked often enough in their place")

    def note(self, endpoint: Endpoint, error: WeightlessError) -> None:
        """What an attempt ended with."""
        self.on_failure(endpoint, error.kind)
        if not isinstance(error, Unavailable):
            self.note_success(endpoint)  # it answers, and does not have it
        elif error.answered and not endpoint.origin:
            self._note_crowd(endpoint, error.retry_after_s)
        else:
            self._pause(endpoint)

    def note_failure(self, endpoint: Endpoint) -> None:
        """An answer broke off."""
        self.on_failure(endpoint, Unavailable.kind)
        self._pause(endpoint)

    def _pause(self, endpoint: Endpoint) -> None:
        if not endpoint.origin:
            with self._lock:
                self._troubles[endpoint.url] = _Trouble(self._clock() + MIRROR_PAUSE_S)

    def note_success(self, endpoint: Endpoint) -> None:
        if endpoint.url in self._troubles:
            with self._lock:
                self._troubles.pop(endpoint.url, None)

    def _note_crowd(self, endpoint: Endpoint, retry_after_s: float | None) -> None:
        now = self._clock()
        pause_s = min(CROWDED_S if retry_after_s is None else retry_after_s, MIRROR_PAUSE_S)
        with self._lock:
            before = self._troubles.get(endpoint.url)
            # One that nobody has tried since it was to be tried again says nothing of now.
            since = before.crowded_since if before is not None and before.until >= now else None
            self._troubles[endpoint.url] = _Trouble(now + pause_s, now if since is None else since)
