"""A program that reads a mount until its standard input closes, checks every byte, and says what it saw.

    python -m tests.faults.reader KIND DIRECTORY MODEL SEED

KIND is sequential, random, mmap or walk; whole and warm read everything, or what is warm, once. It prints `ready` when it holds
its files open, and at the end one `Report` as JSON. It is a process of its own, since a read that waits must
hold up nobody who serves the mount. What was read is dropped from the page cache, so that the next read is the worker's again.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.content import MIB, File, Model

KINDS: Final = ("sequential", "random", "mmap", "walk")
_SLOW_S: Final = 0.02
_PAUSE_S: Final = 0.002
"""Between two operations: readers shall be there at every moment, not take the processor from those who serve them."""
_MOST_TOLD: Final = 20


@dataclass(slots=True)
class Report:
    kind: str
    operations: int = 0
    bytes_read: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slow: list[tuple[float, float, bool]] = field(default_factory=list)
    """Begin and end (monotonic, which all processes share) of operations over 20 ms, and whether they needed no registry."""
    worst: str = ""


class Reader:
    """Does one operation after the other, and notes how each went."""

    def __init__(self, kind: str, directory: Path, model: Model, chance: random.Random) -> None:
        self.directory = directory
        self.model = model
        self.chance = chance
        self.report = Report(kind)
        self._worst_s = 0.0

    def stopped(self) -> bool:
        """Whether standard input has ended; also the pause between two operations."""
        return bool(select.select([0], [], [], _PAUSE_S)[0])

    @contextmanager
    def operation(self, what: str, *, warm: bool) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except OSError as error:
            if len(self.report.errors) < _MOST_TOLD:
                self.report.errors.append(f"{what}: {errno.errorcode.get(error.errno or 0, error)}")
            time.sleep(0.01)  # what fails at once need not fail a million times
        finally:
            ended = time.monotonic()
            self.report.operations += 1
            if ended - began > _SLOW_S:
                self.report.slow.append((began, ended, warm))
            if ended - began > self._worst_s:
                self._worst_s = ended - began
                self.report.worst = f"{what} {ended - began:.3f} s"

    def check(self, file: File, offset: int, content: bytes, length: int) -> None:
        self.report.bytes_read += len(content)
        expected = file.source.read(offset, length)
        if content != expected:
            at = next((n for n, (one, other) in enumerate(zip(content, expected, strict=False)) if one != other), None)
            said = f"{file.path} [{offset}, {offset + length}): {len(content)} of {length} bytes, first wrong at {at}"
            self.expect(False, said)

    def expect(self, true: bool, otherwise: str) -> None:
        if not true and len(self.report.wrong) < _MOST_TOLD:
            self.report.wrong.append(otherwise)

    # ---- the kinds ----

    def sequential(self) -> None:
        """File after file, from begin to end."""
        while not self.stopped():
            for file in self.model.files:
                if self._through(file):
                    return

    def whole(self) -> None:
        """Everything once, whatever standard input says."""
        for file in self.model.files:
            self._through(file, to_the_end=True)

    def warm(self) -> None:
        """What is to be in the cache before the faults begin."""
        for file in self.model.files:
            if file.warm:
                self._through(file, to_the_end=True)

    def _through(self, file: File, *, to_the_end: bool = False) -> bool:
        fd = -1
        with self.operation(f"open {file.path}", warm=True):
            fd = os.open(self.directory / file.path, os.O_RDONLY)
        if fd < 0:
            return not to_the_end and self.stopped()
        try:
            offset = 0
            while offset < file.size:
                if not to_the_end and self.stopped():
                    return True
                length = min(self.chance.choice((4096, 131072, MIB, 1_000_003)), file.size - offset)
                self._pread(fd, file, offset, length)
                offset += length
                if length >= MIB:
                    _drop(fd)
        finally:
            _drop(fd)
            os.close(fd)
        return False

    def random(self) -> None:
        """Ranges anywhere, through descriptors that stay open all the time."""
        opened = [(file, os.open(self.directory / file.path, os.O_RDONLY)) for file in self.model.files]
        _say("ready")
        while not self.stopped():
            file, fd = self.chance.choice(opened)
            length = min(self.chance.choice((1, 4096, 65536, 262144)), file.size)
            self._pread(fd, file, self.chance.randrange(file.size - length + 1), length)
            _drop(fd)

    def _pread(self, fd: int, file: File, offset: int, length: int) -> None:
        with self.operation(f"pread {file.path} at {offset}", warm=file.warm):
            content = os.pread(fd, length, offset)
            if 0 < len(content) < length:
                self._short(fd, file, offset, content)
            self.check(file, offset, content, length)

    def _short(self, fd: int, file: File, offset: int, content: bytes) -> None:
        """A read that meets an error gives what came before it (read(2)). The next one has the error; else it had no reason."""
        self.check(file, offset, content, len(content))
        os.pread(fd, 1, offset + len(content))

    def mmap(self) -> None:
        """Pages anywhere, through mappings that stay all the time."""
        opened = []
        for file in self.model.files:
            fd = os.open(self.directory / file.path, os.O_RDONLY)
            opened.append((file, fd, mmap.mmap(fd, file.size, prot=mmap.PROT_READ)))
        _say("ready")
        while not self.stopped():
            file, fd, mapped = self.chance.choice(opened)
            page = self.chance.randrange(-(-file.size // mmap.PAGESIZE)) * mmap.PAGESIZE
            length = min(mmap.PAGESIZE, file.size - page)
            with self.operation(f"touch {file.path} at {page}", warm=file.warm):
                self.check(file, page, mapped[page : page + length], length)
            mapped.madvise(mmap.MADV_DONTNEED)
            _drop(fd)

    def walk(self) -> None:
        """Names, attributes, extended attributes, opens: none of these needs a registry. Inode numbers never change."""
        digests = {path: str(digest) for path, digest in self.model.digests.items()}
        inodes: dict[str, int] = {}
        expected = {file.path: file.size for file in self.model.files}
        _say("ready")
        while not self.stopped():
            found: dict[str, int] = {}
            for directory in sorted({"", *(os.path.dirname(path) for path in expected)}):  # noqa: PTH120
                with self.operation(f"list {directory or '/'}", warm=True):
                    for entry in os.scandir(self.directory / directory):
                        path = f"{directory}/{entry.name}" if directory else entry.name
                        self.expect(inodes.setdefault(path, entry.inode()) == entry.inode(), f"{path}: another inode")
                        if not entry.is_dir():
                            found[path] = entry.stat().st_size
                if self.stopped():
                    return
            self.expect(found == expected or bool(self.report.errors), f"listed {found}")
            for path, digest in digests.items():
                with self.operation(f"xattr {path}", warm=True):
                    value = os.getxattr(self.directory / path, "user.weightless.digest").decode()
                    self.expect(value == digest, f"{path}: digest {value}")
                with self.operation(f"open {path}", warm=True):
                    os.close(os.open(self.directory / path, os.O_RDONLY))
                missing = self.directory / f"{path}.{self.chance.randrange(1 << 60)}"
                with self.operation(f"stat {missing}", warm=True):
                    self.expect(not missing.exists(), f"{missing} exists")
                if self.stopped():
                    return


def _drop(fd: int) -> None:
    """Takes the whole file from the page cache: of a range, only those folios would go that lie in it entirely."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    kind, directory, model, seed = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader = Reader(kind, Path(directory), Model.from_json(model), random.Random(seed))
    body: Callable[[], None] = getattr(reader, kind)
    if kind not in ("random", "mmap", "walk"):
        _say("ready")
    with _errors_into(reader.report):
        body()
    _say(json.dumps(asdict(reader.report)))


@contextmanager
def _errors_into(report: Report) -> Iterator[None]:
    """An error outside of an operation is one too."""
    try:
        yield
    except OSError as error:
        report.errors.append(str(error))


if __name__ == "__main__":
    main()
