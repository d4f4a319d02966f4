"""Modes and times that manifests, configs and annotations tell of files.

All of it is advice: what cannot be read is left out. Pure.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

import msgspec

from fuse.artifact.manifest import Descriptor, Manifest

MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
MAX_TIME_NS: Final = (1 << 63) - 1
FILE_METADATA: Final = ("org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json")
_CREATED: Final = "org.opencontainers.image.created"
_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)")


class _FileMetadata(msgspec.Struct):
    mode: int = 0
    mtime: str = ""


class _ModelDescriptor(msgspec.Struct, rename="camel"):
    created_at: str = ""


class _ModelConfig(msgspec.Struct):
    descriptor: _ModelDescriptor = msgspec.field(default_factory=_ModelDescriptor)


def parse_time(text: str) -> int | None:
    """RFC 3339 to nanoseconds since 1970; None for what is not a time, or before 1970 (Go writes the year 1 for "unset")."""
    match = _RFC3339.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        whole = (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(seconds=1)
    except (ValueError, OverflowError):
        return None
    return clamp_time(whole * 1_000_000_000 + int((fraction or "").ljust(9, "0"))) if whole >= 0 else None


def clamp_time(time_ns: int) -> int:
    """Into what the kernel and 63 bits can hold."""
    return min(max(time_ns, 0), MAX_TIME_NS)


def of_file(layer: Descriptor) -> tuple[int | None, int | None]:
    """Mode and mtime of a layer that is one file. The size and typeflag there are not believed: tools disagree about both."""
    for key in FILE_METADATA:
        text = layer.annotations.get(key)
        if text is None:
            continue
        try:
            found = msgspec.json.decode(text, type=_FileMetadata)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None, None
        # Go's zero value of a mode means that nobody said; nobody packs a file that no one may read.
        return found.mode & 0o777 or None, parse_time(found.mtime)
    return None, None


def created(manifest: Manifest, config: bytes | None) -> int:
    """When the artifact was made: the default mtime of its files. 0 when it does not say (AIKit's config is `{}`)."""
    if config is not None:
        try:
            found = parse_time(msgspec.json.decode(config, type=_ModelConfig).descriptor.created_at)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            found = None
        if found is not None:
            return found
    return parse_time(manifest.annotations.get(_CREATED, "")) or 0
