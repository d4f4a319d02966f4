"""Profiles: in which order a load touched the blocks of an artifact's blobs.

The format, for others, is docs/profiles.md. A profile is a hint about order and nothing else: it names blocks of blobs that the
reader knows anyway, and what it does not know is passed over. So anybody's is taken, but only one that keeps within the bounds
below: whoever reads it holds all of it in memory, and sends it through a socket in one piece.

Pure; does not know registries, nor how an order is learned (`fuse.prefetch.touches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec

from fuse.artifact.digest import Digest
from fuse.artifact.manifest import MAX_BLOB_BYTES
from fuse.errors import InvalidArtifact

BLOCK_BYTES: Final = 1024 * 1024
VERSION: Final = 1
NEEDS: Final = 1
"""The oldest version of this module that understands a profile of this one (docs/ARCHITECTURE.md, Versions)."""
MOST_RUNS: Final = 4096
"""With runs of 64 blocks, which is as many as one request fetches, they name 256 GiB; read straight on, any size is one run."""
MAX_PROFILE_BYTES: Final = 1024 * 1024
"""MOST_RUNS runs, each of a blob of its own, take half of that."""
_LAST_YEAR_ENDS: Final = 253402300800
"""Of four digits."""

Run = tuple[int, int, int]
"""A blob by its number, the first block, how many blocks."""
Runs = tuple[Run, ...]


class ProfiledBlob(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    size: int


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One load. `runs` are in the order in which their first blocks were touched, and name no block twice."""

    learned_at: int
    """Unix time."""
    blobs: tuple[ProfiledBlob, ...]
    runs: Runs
    block_bytes: int = BLOCK_BYTES
    version: int = VERSION
    needs: int = NEEDS

    @property
    def blocks(self) -> int:
        """How many blocks it names."""
        return sum(blocks for _, _, blocks in self.runs)


_DECODER: Final = msgspec.json.Decoder(Profile)


def made(blobs: Sequence[tuple[str, int]], runs: Runs, learned_at: int) -> Profile:
    """The profile of a load of `blobs` (digest, size). Raises InvalidArtifact for runs that are none of theirs."""
    numbers: dict[int, int] = {}
    for number, _, _ in runs:
        if not 0 <= number < len(blobs):
            raise _invalid(f"there is no blob {number}")
        numbers.setdefault(number, len(numbers))
    profile = Profile(
        learned_at=learned_at,
        blobs=tuple(ProfiledBlob(digest=blobs[number][0], size=blobs[number][1]) for number in numbers),
        runs=tuple((numbers[number], first, blocks) for number, first, blocks in runs),
    )
    _check(profile)
    return profile


def encode(profile: Profile) -> bytes:
    return msgspec.json.encode(profile)


def decode(content: bytes) -> Profile:
    """Raises InvalidArtifact for what is no profile, needs a later version, passes a bound or contradicts itself."""
    if len(content) > MAX_PROFILE_BYTES:
        raise _invalid(f"it has {len(content)} bytes, more than {MAX_PROFILE_BYTES}")
    try:
        profile = _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(str(error)) from None
    _check(profile)
    return profile


def runs_of(profile: Profile, blobs: Sequence[tuple[str, int]]) -> Runs:
    """What it says of `blobs` (digest, size), by their numbers; another mount of the artifact may have fewer of them."""
    numbers = {blob: number for number, blob in reversed(list(enumerate(blobs)))}
    known = [numbers.get((blob.digest, blob.size), -1) for blob in profile.blobs]
    return tuple((known[blob], first, blocks) for blob, first, blocks in profile.runs if known[blob] >= 0)


def _check(profile: Profile) -> None:
    if not 0 <= profile.learned_at < _LAST_YEAR_ENDS:
        raise _invalid(f"it is of the time {profile.learned_at}")
    if profile.needs > VERSION or profile.block_bytes != BLOCK_BYTES:
        raise _invalid(f"version {profile.version} with blocks of {profile.block_bytes} bytes is not known")
    if not 0 < len(profile.runs) <= MOST_RUNS or len(profile.blobs) > MOST_RUNS:
        raise _invalid(f"{len(profile.runs)} runs of {len(profile.blobs)} blobs are none, or too many")
    for blob in profile.blobs:
        Digest.parse(blob.digest)
        if not 0 < blob.size <= MAX_BLOB_BYTES:
            raise _invalid(f"no blob has {blob.size} bytes")
    if len({blob.digest for blob in profile.blobs}) != len(profile.blobs):
        raise _invalid("it lists a blob twice")
    for number, first, blocks in profile.runs:
        if not 0 <= number < len(profile.blobs):
            raise _invalid(f"there is no blob {number}")
        if first < 0 or blocks <= 0 or first + blocks > -(-profile.blobs[number].size // BLOCK_BYTES):
            raise _invalid(f"{blocks} blocks from {first} lie outside blob {number}")
    for (number, first, blocks), (other, following, _) in pairwise(sorted(profile.runs)):
        if number == other and following < first + blocks:
            raise _invalid(f"it names block {following} of blob {number} twice")


def _invalid(what: str) -> InvalidArtifact:
    return InvalidArtifact(f"not a profile: {what}", fix="push it anew with `weightless profile push`")
