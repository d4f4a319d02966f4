"""What is known of a call, for its one line in the log: taken of the request, and added by whoever handles it.

The facts travel in a context variable, so that no handler has to hand them on; what is added on another thread is lost. Texts are
cleaned here, and secrets are never among the facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from google.protobuf.message import Message

from csi import attributes
from csi.redaction import clean

Fact = str | int | float | bool
_CONTEXT: Final = "csi.storage.k8s.io/pod"
_facts: ContextVar[dict[str, Fact] | None] = ContextVar("facts", default=None)


@contextmanager
def collected() -> Iterator[dict[str, Fact]]:
    """The facts that are added while the block runs."""
    facts: dict[str, Fact] = {}
    token = _facts.set(facts)
    try:
        yield facts
    finally:
        _facts.reset(token)


def add(**facts: Fact | None) -> None:
    """Nothing outside of a call; None and empty texts say nothing."""
    current = _facts.get()
    if current is not None:
        current.update({name: _shown(fact) for name, fact in facts.items() if fact is not None and fact != ""})


def of_request(request: Message) -> dict[str, Fact]:
    """Volume, pod and reference, as far as the request has them."""
    found: dict[str, Fact] = {}
    given: Any = request
    names = request.DESCRIPTOR.fields_by_name
    if "volume_id" in names and given.volume_id:
        found["volume_id"] = _shown(given.volume_id)
    if "volume_context" in names:
        context = dict(given.volume_context)
        pod = "/".join(context.get(f"{_CONTEXT}.{part}", "") for part in ("namespace", "name")).strip("/")
        reference = attributes.reference_in(context)
        found |= {name: _shown(text) for name, text in (("pod", pod), ("reference", reference)) if text}
    return found


def _shown(fact: Fact) -> Fact:
    return clean(fact) if isinstance(fact, str) else fact
