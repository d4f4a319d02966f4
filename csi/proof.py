"""The proof that a request may have its model: the registry itself is asked with the credentials of that request.

Called from many threads. It knows neither gRPC nor what is done with the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from fuse.credentials.given import Given, is_weaker
from fuse.errors import Forbidden, Unauthenticated
from fuse.mounting.access import Admission
from fuse.registry.access import Access

T = TypeVar("T")


class Admitting(Protocol):
    """What is needed of `fuse.mounting.access.AccessReader`."""

    def admit(
        self, reference: str, given: Given = ..., *, cancel: threading.Event | None = None, fresh: bool = False
    ) -> Admission: ...


def proven(
    source: Admitting,
    reference: str,
    given: Given,
    ask: Callable[[Access], T],
    cancel: threading.Event,
    admission: Admission | None = None,
) -> tuple[Admission, T]:
    """Whose credentials the registry took, and what `ask` found. Credentials that were remembered are looked up again before
    they are refused.

    `admission`: what was looked up already. Raises what `admit` and `ask` raise, refusals with the cure that fits.
    """
    admission = admission or source.admit(reference, given, cancel=cancel)
    try:
        return admission, ask(admission.access)
    except (Unauthenticated, Forbidden) as error:
        if not admission.remembered:
            raise admission.explained(error) from error
        fresh = source.admit(reference, given, cancel=cancel, fresh=True)
        if is_weaker(fresh.rung, admission.rung):
            # What was asked afresh failed meanwhile: the registry's word to who this is stays the last one.
            raise replace(admission, notes=fresh.notes).explained(error) from error
    try:
        return fresh, ask(fresh.access)
    except (Unauthenticated, Forbidden) as error:
        raise fresh.explained(error) from error
