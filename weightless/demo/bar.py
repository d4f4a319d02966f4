"""A file as a bar: which of its blocks are in the cache. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_FULL: Final = "█"
_SOME: Final = "▒"
_NONE: Final = "·"
LEGEND: Final = f"{_FULL} fetched  {_SOME} in part  {_NONE} still in the registry"


def bar(present: Sequence[bool], width: int) -> str:
    """`width` characters (fewer for a file of fewer blocks), each for an equal share of the blocks."""
    width = min(width, len(present))
    cells: list[str] = []
    for cell in range(width):
        share = present[cell * len(present) // width : (cell + 1) * len(present) // width]
        cells.append(_FULL if all(share) else _SOME if any(share) else _NONE)
    return "".join(cells)
