"""Runs the benchmarks, one after the other, and prints one table. Exit code 1 when a target was missed."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from bench import (
    chunk_index,
    faults,
    loaders,
    loading,
    memory,
    random_reads,
    report,
    sequential,
    sharing,
    tensor_overfetch,
    time_to_first_byte,
    warm,
)
from bench.machine import Machine
from bench.results import Result, show
from bench.scale import FULL
from fuse import logs
from fuse.errors import Missing, WeightlessError
from weightless import console
from weightless.demo import requirements

FAMILIES: Final[tuple[ModuleType, ...]] = (
    time_to_first_byte,
    sequential,
    loading,
    loaders,
    random_reads,
    tensor_overfetch,
    warm,
    sharing,
    memory,
    faults,
    chunk_index,
)
BENCHMARKS: Final[dict[str, Callable[[], list[Result]]]] = {
    module.__name__.rpartition(".")[2]: module.measure for module in FAMILIES
}
DESCRIPTIONS: Final = {module.__name__.rpartition(".")[2]: inspect.getdoc(module) or "" for module in FAMILIES}
_PROGRAMS: Final = {"nginx": "nginx-light", "skopeo": "skopeo", "curl": "curl", "openssl": "openssl", "dd": "coreutils"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--report", type=Path, metavar="DIRECTORY", help="write benchmarks.md and its charts there")
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        console.note(f"error: unknown benchmark {unknown[0]!r}\n  fix: one of {', '.join(BENCHMARKS)}")
        raise SystemExit(2)
    if not FULL:
        console.note("small sizes: the figures mean nothing")
    logs.configure("bench", "warning")
    # Whoever ends us finds everything stopped and unmounted, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = _run(names, arguments.report)
    except WeightlessError as problem:
        console.error(problem)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        console.note("stopped")
        raise SystemExit(130) from None
    show(results)
    raise SystemExit(0 if all(result.reached for result in results) else 1)


def _run(names: list[str], directory: Path | None) -> list[Result]:
    _check(directory)
    results: list[Result] = []
    findings = report.load(directory, Machine.here()) if directory else None
    for name in names:
        console.note(f"{name} …")
        found = BENCHMARKS[name]()
        results += found
        if directory and findings:
            # After each: an hour's work is not lost to what comes last.
            findings = findings.having(name, found)
            report.write(directory, findings, DESCRIPTIONS)
    return results


def _check(directory: Path | None) -> None:
    requirements.check()
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        fix = f"apt-get install {' '.join(missing)}; no service of theirs need run"
        raise Missing(f"missing: {', '.join(missing)}", where="bench", fix=fix)
    if directory and importlib.util.find_spec("matplotlib") is None:
        raise Missing("matplotlib, which draws the report, is not installed", where="bench", fix="make bench does it")


if __name__ == "__main__":
    main()
