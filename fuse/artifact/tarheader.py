"""One 512-byte header of a tar archive, and the records of a PAX extended header (POSIX.1-2008, pax; GNU tar manual).

Formats met: v7, ustar, PAX, GNU (long names, base-256 numbers), star's prefix. Pure; raises ValueError with what is wrong, which
the walker (`fuse.artifact.tar`) puts into the words of an artifact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 512
_RECORD: Final = re.compile(rb"(\d{1,10}) ")
_CHECKSUM_FIELD: Final = slice(148, 156)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    name: bytes
    type: bytes
    """The typeflag, one byte."""
    mode: int
    size: int
    mtime_s: int
    link: bytes


def is_zero(block: bytes) -> bool:
    return not any(block)


def parse_header(block: bytes) -> Header:
    """Raises ValueError when the checksum or a number is wrong."""
    stored = _number(block[_CHECKSUM_FIELD], "checksum")
    unsigned = sum(block) - sum(block[_CHECKSUM_FIELD]) + 8 * ord(" ")
    if stored != unsigned:
        # Some old tars summed signed characters.
        rest = block[: _CHECKSUM_FIELD.start] + block[_CHECKSUM_FIELD.stop :]
        if stored != unsigned - 256 * sum(byte > 127 for byte in rest):
            raise ValueError("its checksum is wrong")
    name = _text(block[0:100])
    # Only ustar has a name's first half here; GNU keeps times of its own in these bytes, star a shorter prefix before them.
    if block[257:263] == b"ustar\0":
        prefix = _text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
        name = prefix + b"/" + name if prefix else name
    size = _number(block[124:136], "size")
    if size < 0:
        raise ValueError("its size is negative")
    return Header(
        name=name,
        type=block[156:157],
        mode=_number(block[100:108], "mode") & 0o7777,
        size=size,
        mtime_s=_number(block[136:148], "mtime"),
        link=_text(block[157:257]),
    )


def parse_pax(content: bytes) -> dict[str, bytes]:
    """The records `LENGTH KEY=VALUE\\n`. Raises ValueError."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(content) and content[position] != 0:
        match = _RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise ValueError("its PAX header is malformed")
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise ValueError("its PAX header is malformed")
        records[key.decode("utf-8", "replace")] = value
        position = end
    return records


def pax_number(value: bytes) -> int:
    """A size. Raises ValueError."""
    if not value.isdigit() or len(value) > 20:
        raise ValueError(f"its PAX size is {value[:40]!r}")
    return int(value)


def pax_time_ns(value: bytes) -> int:
    """Seconds with a decimal fraction. Raises ValueError."""
    match = re.fullmatch(rb"(-?\d{1,12})(?:\.(\d{0,40}))?", value)
    if match is None:
        raise ValueError(f"its PAX time is {value[:40]!r}")
    nanoseconds = int(match[2][:9].ljust(9, b"0")) if match[2] else 0
    return int(match[1]) * 1_000_000_000 + (-nanoseconds if value.startswith(b"-") else nanoseconds)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, what: str) -> int:
    """Octal digits, or base 256 when the first bit is set (GNU, for what octal cannot hold)."""
    if field[0] & 0x80:
        # 0x80 starts a positive number, 0xFF a negative one in two's complement; between them the high bits are the number's.
        negative = field[0] & 0x40
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return value - (1 << (8 * len(field) - 1)) if negative else value
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if digits.translate(None, b"01234567"):
        raise ValueError(f"its {what} is not a number")
    return int(digits, 8)
