"""Random reads by several processes through the real mount, against the original files, while HTTP goes wrong.

The reference model is the packed directory itself: what a read of the mount returns is what the same read of the original does.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.cli import CommandLine
from tests.support.leaks import sandbox
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import pack_model

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1024 * 1024
FILES = (
    "config.json",
    "empty.txt",
    "tokenizer/vocab.txt",
    "tokenizer/merges.txt",
    "weights/model-00001-of-00003.safetensors",
    "weights/model-00002-of-00003.safetensors",
    "weights/model-00003-of-00003.safetensors",
)
Operation = tuple[str, int, int, int]
"""What (pread, mmap, stat), which file, offset, length."""

# A reader is a process of its own that knows nothing but a directory and its operations: it runs as well on the original.
READER = """
import hashlib, json, mmap, os, sys
directory, files, operations = json.load(sys.stdin)
for what, number, offset, length in operations:
    path = os.path.join(directory, files[number])
    if what == "stat":
        print(what, number, os.stat(path).st_size, sorted(os.listdir(os.path.dirname(path))), flush=True)
        continue
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if what == "mmap" and size:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                content = mapped[offset : offset + length]
        else:
            content = os.pread(file.fileno(), length, offset)
    print(what, number, offset, len(content), hashlib.sha256(content).hexdigest(), flush=True)
"""

offsets = st.one_of(
    st.integers(0, 9 * MIB),
    st.builds(lambda block, shift: max(0, block * MIB + shift), st.integers(0, 8), st.integers(-3, 3)),
)
lengths = st.one_of(st.integers(1, 8192), st.integers(MIB - 2, MIB + 2), st.integers(1, 5 * MIB))
operations = st.lists(
    st.tuples(st.sampled_from(["pread", "pread", "mmap", "stat"]), st.integers(0, len(FILES) - 1), offsets, lengths),
    min_size=1,
    max_size=12,
)
# Faults that heal. Corrupt bytes of a large blob are seen only when the blob is whole, so they have tests of their own.
faults = st.lists(
    st.sampled_from(
        [
            "ok",
            "500",
            "503",
            "429;0",
            "cut@0",
            "cut@100000",
            "cut@1048577",
            "no-range",
            "wrong-range",
            "redirect",
            "extra",
        ]
    ),
    max_size=12,
)


def read(directory: Path, operations: list[Operation]) -> subprocess.Popen[str]:
    reader = subprocess.Popen(
        [sys.executable, "-c", READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert reader.stdin is not None
    reader.stdin.write(json.dumps([str(directory), FILES, operations]))
    reader.stdin.close()
    reader.stdin = None
    return reader


def expected(directory: Path, operations: list[Operation]) -> list[str]:
    """What `READER` prints for the original: the definition of right."""
    lines = []
    for what, number, offset, length in operations:
        path = directory / FILES[number]
        if what == "stat":
            names = sorted(entry.name for entry in path.parent.iterdir())
            lines.append(f"stat {number} {path.stat().st_size} {names}")
        else:
            content = path.read_bytes()[offset : offset + length]
            lines.append(f"{what} {number} {offset} {len(content)} {hashlib.sha256(content).hexdigest()}")
    return lines


@settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    readers=st.lists(operations, min_size=2, max_size=4),
    script=faults,
    prefetch=st.sampled_from(["none", "full"]),
    encoding=st.sampled_from(["raw", "tar"]),
)
@example(  # every reader wants the same block at once, and the first answers stop in the middle of it
    readers=[[("pread", 4, 5 * MIB + 10, 100)]] * 4, script=["cut@100000"] * 3, prefetch="none", encoding="raw"
)
@example(  # the last block of a blob, and reads beyond it
    readers=[[("pread", 5, 8 * MIB, 10)], [("mmap", 5, 8 * MIB - 1, 2), ("pread", 5, 9 * MIB, 5)]],
    script=["no-range"],
    prefetch="none",
    encoding="tar",
)
@example(  # a stalled body is given up after some seconds and asked for again
    readers=[[("pread", 6, 0, 4 * MIB)], [("pread", 4, 0, 10)]], script=["stall@1000"], prefetch="none", encoding="raw"
)
def test_any_reads_by_any_processes_are_right(
    small_model: Path, readers: list[list[Operation]], script: list[str], prefetch: str, encoding: str
) -> None:
    """Whatever heals at the HTTP level is not seen by any reader, and no reader sees a wrong byte."""
    with sandbox() as place, FaultyRegistry() as registry:
        pack_model(small_model, encoding="tar" if encoding == "tar" else "raw").serve(registry, "models/small", "1")
        with CommandLine(place).mounted(f"{registry.host}/models/small:1", "--prefetch", prefetch) as mounted:
            registry.script("blob", " ".join(script))
            running = [read(mounted, list(operations)) for operations in readers]
            for process, operations in zip(running, readers, strict=True):
                output, _ = process.communicate(timeout=120)
                assert expected(small_model, operations) == output.splitlines()
