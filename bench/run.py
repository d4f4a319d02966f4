"""Runs the benchmarks, one after the other, and prints one table. Exit code 1 when a target was missed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from bench import chunk_index, faults, memory, sequential, tensor_overfetch, time_to_first_byte
from bench.results import Result, show
from fuse.errors import WeightlessError
from weightless import console
from weightless.demo import requirements

BENCHMARKS: Final[dict[str, Callable[[], list[Result]]]] = {
    "time_to_first_byte": time_to_first_byte.measure,
    "tensor_overfetch": tensor_overfetch.measure,
    "sequential": sequential.measure,
    "memory": memory.measure,
    "faults": faults.measure,
    "chunk_index": chunk_index.measure,
}


def main() -> None:
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        console.note(f"error: unknown benchmark {unknown[0]!r}\n  fix: one of {', '.join(BENCHMARKS)}")
        raise SystemExit(2)
    results: list[Result] = []
    try:
        requirements.check()
        for name in names:
            console.note(f"{name} …")
            results += BENCHMARKS[name]()
    except WeightlessError as problem:
        console.error(problem)
        raise SystemExit(1) from None
    show(results)
    raise SystemExit(0 if all(result.reached for result in results) else 1)
