"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from fuse.errors import InvalidArtifact

_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest of a registered algorithm. Made by `parse` only, so that its text is safe as a file name."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises InvalidArtifact for an unknown algorithm or anything but lower-case hexadecimal of the right length."""
        algorithm, colon, value = text.partition(":")
        length = _LENGTHS.get(algorithm)
        if not colon or length is None or len(value) != length or not _HEX.fullmatch(value):
            raise InvalidArtifact(
                f"{text[:160]!r} is not a digest",
                fix="expected sha256: or sha512: and the value in lower-case hexadecimal",
            )
        return cls(algorithm, value)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def matches(self, content: bytes) -> bool:
        return Digest.of(content, self.algorithm) == self

    def hasher(self) -> hashlib._Hash:
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
