"""Sizes, rates and durations as people write them. Decimal units (1 MB is 1 000 000 bytes), as disks and networks count."""

from __future__ import annotations

import re
from typing import Final

from fuse.errors import InvalidRequest

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{letter: 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("kmgtp", 1)},  # as Kubernetes writes quantities
}
_NAMES: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of "500GB", "1.5 TiB", "500Gi" or "4096". Raises InvalidRequest."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InvalidRequest(
            f"{text[:40]!r} is not a size", fix='write a number and a unit, such as "500GB" or "1.5TiB"'
        )
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def size(count: float) -> str:
    """Three significant digits: "999 B", "1.23 MB", "45.6 GB"."""
    if count < 1000:
        return f"{count:.0f} B"
    power = 0
    while count >= 999.5 and power < len(_NAMES) - 1:
        count /= 1000
        power += 1
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {_NAMES[power]}"


def count(number: int, what: str) -> str:
    """ "1 blob", "2 blobs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def rate(bytes_per_s: float) -> str:
    return f"{size(bytes_per_s)}/s"


def duration(seconds: float) -> str:
    """ "0.12 s", "34 s", "5 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
