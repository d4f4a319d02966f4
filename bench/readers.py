"""Programs that load models, each as the loaders that people use do it, in a process of their own.

It has to be one: a page fault on a mapped file holds the interpreter's lock, and whoever asks may have to feed the mount. It is
started, with its imports done, before anything is measured: how long Python takes to start is not of interest. A request is a
line of JSON on its standard input, the answer a line on its standard output, with times of CLOCK_MONOTONIC, which is the same in
all processes.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_PAGE_BYTES: Final = mmap.PAGESIZE
_STREAMS: Final = 16
_STREAM_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reading:
    began: float
    ended: float
    steps: tuple[tuple[float, int], ...]
    """When each piece was there, and how many bytes it has."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def bytes(self) -> int:
        return sum(count for _, count in self.steps)

    def trace(self, origin: float) -> tuple[tuple[float, float], ...]:
        """How many megabytes were there, and when after `origin`."""
        found = [(0.0, 0.0)]
        for moment, count in self.steps:
            found.append((round(moment - origin, 3), round(found[-1][1] + count / 1e6, 1)))
        return tuple(found)


class Reader:
    """The other process. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.readers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the benchmark, which then ends it
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, how: str, paths: Iterable[Path], *arguments: object) -> Reading:
        """Reads files as `how` (a key of HOW) does it."""
        self.begin(how, paths, *arguments)
        return self.end()

    def begin(self, how: str, paths: Iterable[Path], *arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([how, [str(path) for path in paths], *arguments]) + "\n")
        self._process.stdin.flush()

    def end(self) -> Reading:
        """Waits for what was begun."""
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except BaseException:
            # It has files of a mount open, which somebody is about to unpublish.
            self._process.kill()
            raise
        if not line:
            raise AssertionError(f"a reader ended with {self._process.wait()}")
        began, ended, steps = json.loads(line)
        return Reading(began, ended, tuple((moment, count) for moment, count in steps))


# ---- the loaders ----

Steps = list[tuple[float, int]]


def _safetensors(paths: Sequence[str]) -> Steps:
    """The default of safetensors and vLLM: mapped, tensor after tensor."""
    from safetensors import safe_open

    steps: Steps = []
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                steps.append(_now(file.get_tensor(name).nbytes))
    return steps


def _eager(paths: Sequence[str]) -> Steps:
    """`safetensors_load_strategy=eager`: the whole file, then its tensors."""
    from safetensors.numpy import load

    return [_now(sum(value.nbytes for value in load(Path(path).read_bytes()).values())) for path in paths]


def _streamer(paths: Sequence[str]) -> Steps:
    """Run:ai's streamer: many threads, each with a part of the file of its own, in pieces of 2 MiB."""
    with ThreadPoolExecutor(_STREAMS) as threads:
        return [_now(sum(threads.map(_stream, [path] * _STREAMS, range(_STREAMS)))) for path in paths]


def _stream(path: str, part: int) -> int:
    buffer = bytearray(_STREAM_BYTES)
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        at, end = size * part // _STREAMS, size * (part + 1) // _STREAMS
        begin = at
        while at < end:
            at += os.preadv(fd, [memoryview(buffer)[: end - at]], at)
        return end - begin
    finally:
        os.close(fd)


def _gguf(paths: Sequence[str]) -> Steps:
    """llama.cpp without its advice to the kernel: mapped, every page touched in the order of the file."""
    steps: Steps = []
    for path in paths:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            touched = len(mapped[::_PAGE_BYTES])
            assert touched == -(-len(mapped) // _PAGE_BYTES)
            steps.append(_now(len(mapped)))
    return steps


def _tensor(paths: Sequence[str], name: str) -> Steps:
    """One tensor of a safetensors file."""
    from safetensors import safe_open

    with safe_open(paths[0], framework="numpy") as file:
        return [_now(file.get_tensor(name).nbytes)]


def _random(paths: Sequence[str], offsets: Sequence[int], length: int) -> Steps:
    """One thread, one read after the other; each step follows the one before."""
    steps: Steps = []
    fd = os.open(paths[0], os.O_RDONLY)
    try:
        for offset in offsets:
            steps.append(_now(len(os.pread(fd, length, offset))))
    finally:
        os.close(fd)
    return steps


def _ranges(paths: Sequence[str], host: str, ranges: Sequence[tuple[int, int]]) -> Steps:
    """The peer of `_random`: ranged GETs of `paths` over one connection."""
    steps: Steps = []
    buffer = memoryview(bytearray(max(length for _, length in ranges)))
    connection = http.client.HTTPConnection(host)
    try:
        for offset, length in ranges:
            connection.request("GET", paths[0], headers={"Range": f"bytes={offset}-{offset + length - 1}"})
            answer = connection.getresponse()
            count = 0
            while read := answer.readinto(buffer[count:]):
                count += read
            assert (answer.status, count) == (206, length)
            steps.append(_now(count))
    finally:
        connection.close()
    return steps


HOW: Final[dict[str, Callable[..., Steps]]] = {
    "safetensors": _safetensors,
    "eager": _eager,
    "streamer": _streamer,
    "gguf": _gguf,
    "tensor": _tensor,
    "random": _random,
    "ranges": _ranges,
}


def _now(count: int) -> tuple[float, int]:
    return time.monotonic(), count


def main() -> None:
    import safetensors.numpy  # noqa: F401 - before the first request

    print("ready", flush=True)
    for line in sys.stdin:
        request: list[Any] = json.loads(line)
        how, *arguments = request
        began = time.monotonic()
        steps = HOW[how](*arguments)
        print(json.dumps([began, time.monotonic(), steps]), flush=True)


if __name__ == "__main__":
    main()
