"""What the tests are told by `python -m tests.cluster`, and by whoever has a cluster; both through the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

MODE: Final = "WEIGHTLESS_CLUSTER"
"""`own`, `foreign`; without it the tests of this directory are not collected."""
OWN: Final = "own"
FOREIGN: Final = "foreign"

IMAGES: Final = "WEIGHTLESS_CLUSTER_IMAGES"
"""Archives for a node of our own."""

READER: Final = "weightless.test/reader:1"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A cluster that KUBECONFIG names, with images that its nodes can pull."""

    image: str
    reader: str
    reference: str
    sums: str
    """As `sha256sum` prints them in the model's directory, sorted by path."""

    @classmethod
    def from_environment(cls) -> Self:
        missing = [name for name in ("IMAGE", "MODEL", "SUMS") if f"WEIGHTLESS_CLUSTER_{name}" not in os.environ]
        if missing:
            names = ", ".join(f"WEIGHTLESS_CLUSTER_{name}" for name in missing)
            raise SystemExit(f"with KUBECONFIG, please also set {names} (CONTRIBUTING.md, A real cluster)")
        return cls(
            image=os.environ["WEIGHTLESS_CLUSTER_IMAGE"],
            reader=os.environ.get("WEIGHTLESS_CLUSTER_READER", "busybox:1.37"),
            reference=os.environ["WEIGHTLESS_CLUSTER_MODEL"],
            sums=Path(os.environ["WEIGHTLESS_CLUSTER_SUMS"]).read_text(),
        )
