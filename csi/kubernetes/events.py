"""Events as values: what the owner of a pod is told, as an object of events.k8s.io/v1, and how often. Pure.

The API server bounds an event's fields, and keeps it for an hour. The same thing is told once in ten minutes at most, and as one
event with a count: `Told` remembers what was said. A note is cleaned and cut by whoever writes it into an `Event`.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

QUIET_S: Final = 600.0
MAX_NOTE_BYTES: Final = 1024
_MAX_REMEMBERED: Final = 4096
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class EventReason(StrEnum):
    """For good: people and programs look for them. docs/OPERATIONS.md lists them; a test compares."""

    RESOLVED = "ModelResolved"
    REFUSED = "ModelRefused"
    UNAVAILABLE = "ModelUnavailable"
    DEGRADED = "ModelDegraded"
    BROKEN = "ModelBroken"
    HEALED = "ModelHealed"


_NORMAL: Final = frozenset({EventReason.RESOLVED, EventReason.HEALED})
_ACTIONS: Final = {
    EventReason.RESOLVED: "Publish",
    EventReason.REFUSED: "Publish",
    EventReason.UNAVAILABLE: "Publish",
    EventReason.DEGRADED: "Serve",
    EventReason.BROKEN: "Serve",
    EventReason.HEALED: "Serve",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """Checked: its parts become those of a URL."""

    namespace: str
    name: str
    uid: str


def pod_of(namespace: str, name: str, uid: str) -> Pod | None:
    """None for what no pod can be called."""
    fits = _LABEL.fullmatch(namespace) and _NAME.fullmatch(name) and _NAME.fullmatch(uid)
    return Pod(namespace, name, uid) if fits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    pod: Pod
    volume_id: str
    reason: EventReason
    cause: str
    """Of few values for each volume: with the fields above it makes two events the same, whatever words they have."""
    note: str
    at: float
    """Unix time."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.pod.uid, self.volume_id, self.reason, self.cause


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is to be sent: an event for the first time, or how often it has been seen by now."""

    event: Event
    name: str
    count: int

    @property
    def again(self) -> bool:
        return self.count > 1

    @property
    def collection(self) -> str:
        return f"/apis/events.k8s.io/v1/namespaces/{self.event.pod.namespace}/events"

    @property
    def path(self) -> str:
        return f"{self.collection}/{self.name}"

    def document(self, controller: str, instance: str) -> dict[str, Any]:
        event = self.event
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": self.name, "namespace": event.pod.namespace},
            "eventTime": _micro_time(event.at),
            "reportingController": controller,
            "reportingInstance": instance[:128],
            "action": _ACTIONS[event.reason],
            "reason": event.reason.value,
            "type": "Normal" if event.reason in _NORMAL else "Warning",
            "note": cut(event.note),
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": event.pod.namespace,
                "name": event.pod.name,
                "uid": event.pod.uid,
            },
        }

    def series(self) -> dict[str, Any]:
        """A merge patch."""
        return {"series": {"count": self.count, "lastObservedTime": _micro_time(self.event.at)}}


@dataclass(slots=True)
class _Said:
    name: str
    note: str
    count: int
    at: float


class Told:
    """What was told of late, and so need not be told again. For one thread at a time."""

    def __init__(self, quiet_s: float = QUIET_S, most: int = _MAX_REMEMBERED) -> None:
        self._quiet_s = quiet_s
        self._most = most
        self._said: OrderedDict[tuple[str, str, str, str], _Said] = OrderedDict()

    def admit(self, event: Event) -> Utterance | None:
        """What to send now; None while the same has been told a moment ago, which is counted."""
        said = self._said.get(event.key)
        if said is not None:
            said.count += 1
            if event.at - said.at < self._quiet_s:
                return None
            if said.note == event.note:
                said.at = event.at
                self._said.move_to_end(event.key)
                return Utterance(event, said.name, said.count)
        return self.renew(event)

    def renew(self, event: Event) -> Utterance:
        """The event as one of its own: for the first time, in other words, or since the earlier one is gone."""
        stem = event.pod.name[:200].rstrip("-.")
        said = _Said(f"{stem}.{secrets.token_hex(8)}", event.note, 1, event.at)
        self._said[event.key] = said
        self._said.move_to_end(event.key)
        while len(self._said) > self._most:
            self._said.popitem(last=False)
        return Utterance(event, said.name, 1)

    def forget(self, event: Event) -> None:
        """It could not be told: the next one is to be."""
        self._said.pop(event.key, None)


def cut(note: str) -> str:
    """At most so many bytes of UTF-8 as an event may have."""
    content = note.encode()
    if len(content) <= MAX_NOTE_BYTES:
        return note
    return content[: MAX_NOTE_BYTES - 3].decode(errors="ignore") + "…"


def _micro_time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
