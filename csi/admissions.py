"""What each published volume was let in with: to know newer credentials when they come, and when to look for some.

Memory only: what a request brought is kept as long as its volume, and is on no disk. After a restart nothing of it is there; the
mount itself keeps what it was given last (`fuse.keeper`), and the rung stands in the volume's record. Thread-safe.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from fuse.credentials.given import Given
from fuse.mounting.access import Admission

_FIRST_PAUSE_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    given: Given = field(repr=False)
    print: bytes
    """What the access looked like, salted; empty when that is not known."""
    rungs: Collection[str]
    """Of all hosts: a mirror's credentials may be others than the registry's."""
    ends_at: float
    pause_s: float
    """After the next look that fails."""


class Admissions:
    """By name of the volume's record."""

    def __init__(self) -> None:
        self._salt: Final = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def note(self, name: str, given: Given, admission: Admission, *, least_s: float = 0.0, now: float = 0.0) -> None:
        """The volume goes on with these. Not before `least_s` after `now` are others looked for."""
        held = _Held(
            given=given,
            print=self._print(admission),
            rungs={admission.rung, *admission.rungs},
            ends_at=max(admission.ends_at, now + least_s),
            pause_s=_FIRST_PAUSE_S,
        )
        with self._lock:
            self._held[name] = held

    def expect(self, name: str, rung: str, ends_at: float) -> None:
        """A volume of before a restart."""
        with self._lock:
            self._held.setdefault(
                name, _Held(given=Given(), print=b"", rungs={rung}, ends_at=ends_at, pause_s=_FIRST_PAUSE_S)
            )

    def given(self, name: str) -> Given:
        """What the last request brought, or nothing."""
        with self._lock:
            held = self._held.get(name)
        return held.given if held is not None else Given()

    def is_same(self, name: str, admission: Admission) -> bool:
        """Whether the volume has these very credentials, by the same hosts."""
        with self._lock:
            held = self._held.get(name)
        return held is not None and held.print == self._print(admission)

    def forget(self, name: str) -> None:
        with self._lock:
            self._held.pop(name, None)

    def due(self, now: float) -> list[str]:
        """Whose credentials end, or have ended."""
        with self._lock:
            return [name for name, held in self._held.items() if held.ends_at <= now]

    def end(self, rungs: Collection[str], now: float) -> None:
        """What came from these rungs may be out of date."""
        with self._lock:
            for name, held in self._held.items():
                if not set(rungs).isdisjoint(held.rungs):
                    self._held[name] = replace(held, ends_at=min(held.ends_at, now), pause_s=_FIRST_PAUSE_S)

    def put_off(self, name: str, now: float) -> None:
        """None could be had: tried again after pauses that double."""
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                longer_s = min(_LONGEST_PAUSE_S, held.pause_s * 2)
                self._held[name] = replace(held, ends_at=now + held.pause_s, pause_s=longer_s)

    def _print(self, admission: Admission) -> bytes:
        return hashlib.blake2b(msgspec.json.encode(admission.access), key=self._salt).digest()
