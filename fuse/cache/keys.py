"""What names a blob in the cache, and where it lies.

`blobs/<algorithm>/<hex>.<size>.<scope>.data` and `.index`: the size being what some manifest claimed, so that a lie about it
harms only its own mount, and the scope standing for the registry that the bytes come from, so that they are served to nobody
else.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fuse.artifact.digest import Digest

ALGORITHMS: Final = ("sha256", "sha512")
_SCOPE: Final = re.compile(r"[0-9a-f]{32}")
_COPIES: Final = "00000000"
"""How scopes of copies begin. A registry whose own does so by chance, one in four billion, has its blobs evicted first."""


@dataclass(frozen=True, slots=True)
class BlobKey:
    """What names a blob in the cache: what it is said to be, and by whom.

    A digest proves nothing of a range before the whole blob is there, and anybody may run a registry that calls any digest its
    own: it must neither put bytes into others' mounts nor open what others fetched. So the same digest from two registries is two
    blobs. Within one registry a digest is one: that registry decides who may pull it.
    """

    digest: Digest
    size: int
    scope: str
    """`scope_of` the registry that it is fetched from."""

    def __str__(self) -> str:
        return f"{self.digest}.{self.size}.{self.scope}"

    @property
    def is_copy(self) -> bool:
        """Whether it is a part of another blob, copied out of it (`fuse.cache.copies`), which no registry has."""
        return self.scope.startswith(_COPIES)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError or InvalidArtifact."""
        digest, size, scope = text.split(".")
        if not _SCOPE.fullmatch(scope):
            raise ValueError(f"not the scope of a blob: {scope!r}")
        return cls(Digest.parse(digest), int(size), scope)


def scope_of(registry: str) -> str:
    """Stands for a registry (its host) in a `BlobKey`. Long enough that nobody finds another one with it."""
    return hashlib.sha256(registry.encode()).hexdigest()[:32]


def scope_of_copies(scope: str) -> str:
    """Of copies of parts of blobs of this scope: of its own, so that no registry can name one, and nobody fetches into it."""
    return _COPIES + hashlib.sha256(f"copies of {scope}".encode()).hexdigest()[: 32 - len(_COPIES)]


def paths(root: Path, key: BlobKey) -> tuple[Path, Path]:
    """Where data and index of a blob lie in the cache directory `root`."""
    base = root / "blobs" / key.digest.algorithm / str(key).partition(":")[2]
    return base.with_name(base.name + ".data"), base.with_name(base.name + ".index")
