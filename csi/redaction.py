"""What of a request or a message may be seen by others: logs, status messages, and so the events of a pod.

Fields that may hold secrets are found by their option `csi_secret` in csi.proto, not by a list kept here; besides them only the
volume context needs care, where kubelet puts service account tokens. Pure.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi.pb import csi_pb2 as pb
from fuse.logs import scrub

HIDDEN: Final = "…"
_CONTEXTS: Final = ("volume_context", "publish_context")
_TOKEN_KEY = re.compile(r"token|secret|password|credential|auth\b", re.IGNORECASE)
_USERINFO = re.compile(r"(?<![^\s'\"(=,])[^\s/'\"@:\[]+:(?!\d{1,5}/)[^\s'\"@]+@(?!sha(?:256|512):)")
"""`user:password@host`, as someone may write it into a reference, where no scheme says that it is a URL or the password has a
slash. `host:5000/name@…` is none, nor what stands before a digest, nor `host[:port]/…`."""
_MAX_MESSAGE: Final = 2000
_SHORTEST_SECRET: Final = 4
"""Shorter ones would blacken innocent words and protect nothing."""


def visible(message: Message) -> dict[str, Any]:
    """The fields of `message` that may be logged; secret ones are named without their values."""
    shown: dict[str, Any] = {}
    for field, value in message.ListFields():
        shown[field.name] = _visible_value(field, value)
    return shown


def _visible_value(field: FieldDescriptor, value: Any) -> Any:
    if field.GetOptions().Extensions[pb.csi_secret]:
        return HIDDEN
    if field.name in _CONTEXTS:
        return {key: HIDDEN if _TOKEN_KEY.search(key) else clean(text) for key, text in sorted(value.items())}
    if field.name == "mount_flags":
        # CSI: "MAY be sensitive".
        return HIDDEN
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): clean(str(text)) for key, text in value.items()}
    if field.message_type is not None:
        return [visible(item) for item in value] if field.is_repeated else visible(value)
    if field.is_repeated:
        return [clean(str(item)) for item in value]
    return clean(value) if isinstance(value, str) else value


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets`, without credentials in URLs and references, in one line, and of bounded length."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _USERINFO.sub("", scrub(text))
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + HIDDEN


def secret_values(message: Message) -> set[str]:
    """The texts in `message` that nobody may see, and what they are made of: passwords inside of a docker config, too."""
    found: set[str] = set()
    for field, value in message.ListFields():
        if field.GetOptions().Extensions[pb.csi_secret]:
            for key, text in value.items():
                found.add(text)
                if key != "username":
                    found.update(_leaves(text))
                else:
                    found.discard(text)
        elif field.name in _CONTEXTS:
            for key, text in value.items():
                if _TOKEN_KEY.search(key):
                    found.add(text)
                    found.update(_leaves(text))
    return {text for text in found if len(text) >= _SHORTEST_SECRET}


def _leaves(text: str) -> set[str]:
    """The strings of a JSON document, those of base64 decoded as well (docker's `auth` is `user:password`)."""
    found: set[str] = set()
    try:
        pending: list[object] = [msgspec.json.decode(text)]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return found
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(value for key, value in item.items() if key not in ("username", "email"))
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, str):
            found.add(item)
            with suppress(
                ValueError
            ):  # no base64, or no text; binascii.Error is one, and there is one for what is not ASCII
                found.add(base64.b64decode(item, validate=True).decode().partition(":")[2])
    return found
