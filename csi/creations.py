"""Requests of the Controller service as values: checked once, here, so that nothing behind it asks again. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from csi import attributes
from csi.fields import CALLER, WHITE_SPACE, capability, complete, identifier
from csi.pb import csi_pb2 as pb
from csi.templates import Claim, claim_of
from fuse.errors import InvalidRequest, NotFound

_WHERE: Final = "StorageClass parameters"
_VOLUME_ID: Final = re.compile(r"wl-[a-z2-7]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """Two requests are the same when they are equal, secrets included."""

    name: str
    parameters: Mapping[str, str]
    """Ours, by bare name; the reference may still be a template."""
    claim: Claim | None
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateRequest:
    context: Mapping[str, str]
    """Ours, by bare name; empty when the caller sent none."""
    refusal: str
    """Why the capabilities cannot be given; empty when they can."""
    secrets: Mapping[str, str] = field(repr=False)


def create(request: pb.CreateVolumeRequest) -> CreateRequest:
    """Raises InvalidRequest."""
    name = identifier("name", request.name, harmless=WHITE_SPACE)
    _some(request.volume_capabilities)
    for asked in request.volume_capabilities:
        capability(asked)
    _check_range(request.capacity_range)
    if request.HasField("volume_content_source"):
        raise InvalidRequest(
            "a model is made of no snapshot and no other volume",
            where="volume_content_source",
            fix="leave dataSource out of the claim",
        )
    if request.mutable_parameters:
        raise InvalidRequest(
            "a model has no attributes that can be changed",
            where="mutable_parameters",
            fix="leave volumeAttributesClassName out of the claim",
        )
    parameters = attributes.by_name(request.parameters, _WHERE)
    if not parameters.get("reference"):
        raise InvalidRequest(
            "there is no reference", where=_WHERE, fix="set reference to host[:port]/repository[:tag][@digest]"
        )
    return CreateRequest(
        name=name,
        parameters=parameters,
        claim=claim_of(request.parameters),
        secrets=attributes.check_secrets(request.secrets),
    )


def delete(request: pb.DeleteVolumeRequest) -> str:
    """The volume's id, whoever made it: there is nothing to delete. Raises InvalidRequest."""
    return identifier("volume_id", request.volume_id)


def validate(request: pb.ValidateVolumeCapabilitiesRequest) -> ValidateRequest:
    """Raises InvalidRequest, and NotFound for a volume that nobody can have made."""
    volume_id = identifier("volume_id", request.volume_id)
    _some(request.volume_capabilities)
    for asked in request.volume_capabilities:
        complete(asked)
    context = attributes.by_name(request.volume_context)
    if not context and not _VOLUME_ID.fullmatch(volume_id):
        raise NotFound(
            "no volume has this id, and there is no volume_context that says what it would show",
            where=f"volume {volume_id!r:.200}",
        )
    return ValidateRequest(
        context=context, refusal=_refusal(request), secrets=attributes.check_secrets(request.secrets)
    )


def volume_id(name: str, values: Mapping[str, str]) -> str:
    """Of what is asked for, not of what a tag leads to: the same request makes the same volume, also after the tag moved."""
    content = repr((name, sorted(values.items()))).encode()
    return f"wl-{base64.b32encode(hashlib.sha256(content).digest()).decode().lower()[:32]}"


def _refusal(request: pb.ValidateVolumeCapabilitiesRequest) -> str:
    try:
        for asked in request.volume_capabilities:
            capability(asked)
        attributes.by_name(request.parameters, _WHERE)
    except InvalidRequest as error:
        return str(error)
    return "a model has no mutable parameters" if request.mutable_parameters else ""


def _some(capabilities: Sequence[pb.VolumeCapability]) -> None:
    if not capabilities:
        raise InvalidRequest("there is none", where="volume_capabilities", fix=CALLER)


def _check_range(asked: pb.CapacityRange) -> None:
    least, most = asked.required_bytes, asked.limit_bytes
    if least < 0 or most < 0 or (most and most < least):
        raise InvalidRequest(
            f"no volume has {least} to {most} bytes", where="capacity_range", fix="correct the claim's request"
        )
