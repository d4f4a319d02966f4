"""Making volumes out of claims: which model is meant, whether it is there and may be pulled, and what it is today.

A volume is nothing but its context: the reference, pinned to the digest that the tag has now, so that a claim shows the same
bytes for all its life. Nothing is kept, so nothing needs to be deleted, and any number of controllers may run. It knows neither
gRPC nor how a registry is asked. Called from many threads; of one name one thing at a time is under way.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from csi import attributes, creations
from csi.attributes import MAX_MAP_BYTES, PREFIX
from csi.creations import CreateRequest, ValidateRequest
from csi.operations import Operation, Operations
from csi.proof import Admitting, proven
from csi.templates import Annotations, expand
from fuse.credentials.given import Given
from fuse.errors import InvalidRequest
from fuse.registry.access import Access

_NAMED_IN: Final = "StorageClass parameter csi.storage.k8s.io/provisioner-secret-name"
_ROOM: Final = "shorten the reference or the patterns"


class Pinner(Protocol):
    """Asks a registry: `fuse.fetch.pinning.Pinner` where nothing is mounted, `MountingPinner` beside a node plugin."""

    def pin(self, reference: str, access: Access, cancel: threading.Event) -> str:
        """The reference with the digest that it leads to. Raises what the registry raises, NotAModel, Cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVolume:
    volume_id: str
    context: Mapping[str, str]


class Provisioner:
    """`annotations` reads a claim's, from the cluster."""

    def __init__(self, *, pinner: Pinner, access: Admitting, annotations: Annotations) -> None:
        self.operations: Operations[NewVolume] = Operations()
        self._pinner = pinner
        self._access = access
        self._annotations = annotations
        self._ending = threading.Event()

    def create(self, request: CreateRequest, limit_s: float | None = None) -> NewVolume:
        """The volume of this name. `limit_s` bounds the waiting for an equal request that is under way only."""
        return self.operations.run(
            Operation("create", request.name, request),
            request.name,
            lambda own: self._create(own, request),
            limit_s=limit_s,
        )

    def confirm(self, request: ValidateRequest) -> str:
        """Empty if the volume can be had as asked, else why not. Raises as `create` does when its model cannot be had at all."""
        if request.context:
            reference = attributes.parse(request.context).reference
            self._pinned(reference, request.secrets, self._ending)
        return request.refusal

    def end(self) -> None:
        """Starts nothing more, and gives up what is under way, without waiting for it."""
        self._ending.set()
        self.operations.end()

    def close(self, limit_s: float) -> bool:
        """`end`, and waits. False when volumes are still being made after this time."""
        self.end()
        return self.operations.close(limit_s)

    def _create(self, operation: Operation[NewVolume], request: CreateRequest) -> NewVolume:
        template = request.parameters["reference"]
        values = {**request.parameters, "reference": expand(template, request.claim, self._annotations)}
        reference = attributes.parse(values).reference
        pinned = self._pinned(reference, request.secrets, operation.cancel)
        operation.check()
        context = {f"{PREFIX}{name}": value for name, value in sorted({**values, "reference": pinned}.items())}
        if sum(len(key.encode()) + len(value.encode()) for key, value in context.items()) > MAX_MAP_BYTES:
            raise InvalidRequest("more than 4 KiB with the digest", where="StorageClass parameters", fix=_ROOM)
        return NewVolume(volume_id=creations.volume_id(request.name, values), context=context)

    def _pinned(self, reference: str, secrets: Mapping[str, str], cancel: threading.Event) -> str:
        given = Given(secrets=secrets, named_in=_NAMED_IN)
        _, pinned = proven(
            self._access, reference, given, lambda access: self._pinner.pin(reference, access, cancel), cancel
        )
        return pinned
