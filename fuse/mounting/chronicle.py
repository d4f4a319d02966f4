"""One line in the log for each change of a mount's condition, and few where it flickers.

`Story` decides and is pure. `Chronicle` is the thread that looks: at what is in memory every second, and once in a while has the
processes asked, so that a condition which only they know is never old, whether or not anybody wants a status. Trouble that heals
between two looks is told by counters, not here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from fuse.mounting.mount import Mount
from fuse.mounting.status import Health

_LOOK_S: Final = 1.0
_REFRESH_S: Final = 10.0
_QUIET_S: Final = 10.0
"""How long nothing more is said of a mount after a line; then, how it is, if that is something else."""
_EVENTS: Final = {"healthy": "mount_healed", "degraded": "mount_degraded", "broken": "mount_broken"}

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Story:
    """What was seen and said of one mount. Times are the caller's (Unix)."""

    now: Health = field(default_factory=Health)
    since: float = 0.0
    told: Health = field(default_factory=Health)
    told_at: float = 0.0
    unwell_since: float = 0.0
    untold: int = 0
    """Changes that no line was written for."""

    def look(self, health: Health, at: float) -> tuple[bool, dict[str, Any] | None]:
        """Whether the condition has changed since the last look, and the line to write now, if any."""
        changed = health.cause != self.now.cause
        if changed:
            self.untold += 1
            self.since = at if health.state == "healthy" else health.since or at
            if self.now.state == "healthy":
                self.unwell_since = self.since
        self.now = health
        if health.cause == self.told.cause or (self.told_at and at - self.told_at < _QUIET_S):
            return changed, None
        line: dict[str, Any] = {"event": _EVENTS[health.state], "was": self.told.state}
        if health.state == "healthy":
            line["reason"] = self.told.reason_code
            line["duration_s"] = round(max(0.0, self.since - self.unwell_since), 1)
        else:
            line |= {"reason": health.reason_code, "since": health.since_iso, "words": health.reason}
        if self.untold > 1:
            line["changes"] = self.untold
        self.told, self.told_at, self.untold = health, at, 0
        return changed, line


class Chronicle:
    """Call `start` once the mounts may be looked at, `close` before they end."""

    def __init__(
        self,
        *,
        mounts: Callable[[], Iterable[Mount]],
        health: Callable[[Mount], Health],
        refresh: Callable[[], object],
    ) -> None:
        """`health` answers from memory; `refresh` asks the processes, and returns in about a second whatever they do."""
        self._mounts = mounts
        self._health = health
        self._refresh = refresh
        self._stories: dict[str, Story] = {}
        self._changes: dict[tuple[str, str], int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chronicle", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def changes(self) -> dict[tuple[str, str], int]:
        """How often mounts came into each state, by state and reason."""
        return dict(self._changes)

    def _run(self) -> None:
        fresh_until = time.monotonic() + _REFRESH_S
        while not self._closing.wait(_LOOK_S):
            try:
                if time.monotonic() >= fresh_until:
                    self._refresh()
                    fresh_until = time.monotonic() + _REFRESH_S
                self._look()
            except Exception:  # noqa: BLE001  (whoever watches must not be ended by what it sees)
                _log.exception("chronicle_failed")

    def _look(self) -> None:
        mounts = {mount.id: mount for mount in self._mounts() if mount.live}
        for gone in self._stories.keys() - mounts.keys():
            del self._stories[gone]
        for name, mount in mounts.items():
            story = self._stories.setdefault(name, Story())
            health = self._health(mount)
            changed, line = story.look(health, time.time())
            if changed:
                cause = health.state, health.cause[1]
                self._changes = {**self._changes, cause: self._changes.get(cause, 0) + 1}
            if line is not None:
                level = "info" if health.state == "healthy" else "warning" if health.state == "degraded" else "error"
                event = line.pop("event")
                getattr(_log, level)(event, mount=name, mountpoint=str(mount.mountpoint), **line)
