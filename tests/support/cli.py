"""The installed `weightless` command in a sandbox, as a person would type it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.leaks import Sandbox, alive
from tests.support.waiting import until

COMMAND: Final = str(Path(sys.executable).with_name("weightless"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    code: int
    out: str
    error: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.error}"


@dataclass(slots=True)
class CommandLine:
    """Runs commands with the sandbox's cache, run directory and docker configuration."""

    sandbox: Sandbox
    options: tuple[str, ...] = ()
    """Shared options for every command, such as `--certs-dir`."""

    def argv(self, *arguments: str | Path) -> list[str]:
        shared = ["--cache-dir", str(self.sandbox.cache), *self.options]
        return [COMMAND, *shared, *(str(argument) for argument in arguments)]

    def run(
        self, *arguments: str | Path, timeout_s: float = 60, environment: Mapping[str, str] | None = None
    ) -> Result:
        """Runs to the end, whatever the exit code. Output goes through pipes: a daemon that kept them would hang this."""
        done = subprocess.run(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**self.sandbox.environment, **(environment or {})},
            cwd=self.sandbox.root,
            check=False,
        )
        return Result(code=done.returncode, out=done.stdout, error=done.stderr)

    def do(self, *arguments: str | Path, timeout_s: float = 60) -> Result:
        """Runs a command that must succeed."""
        result = self.run(*arguments, timeout_s=timeout_s)
        assert result.code == 0, str(result)
        return result

    def status(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.do("status", "--json").out)
        return found

    @contextmanager
    def mounted(self, reference: str, *options: str, name: str = "mnt") -> Iterator[Path]:
        """Mounts below the sandbox, and unmounts at the end whatever happened.

        Unmounting properly at the end is part of every test that uses this: it must return 0 and leave no process.
        """
        directory = self.sandbox.root / name
        directory.mkdir(exist_ok=True)
        self.do("mount", *options, reference, directory)
        try:
            yield directory
        except BaseException:
            self.run("unmount", "--lazy", directory)
            raise
        processes = {status["worker_pid"] for status in self.status() if status["mountpoint"] == str(directory)}
        self.do("unmount", directory)
        assert not [pid for pid in processes if alive(pid)]
        assert str(directory) not in self.sandbox.mounts()
        directory.rmdir()

    def wait_cached(self, *, within_s: float = 60) -> dict[str, Any]:
        """Waits until the only mount is wholly in the cache; its last status."""
        last: dict[str, Any] = {}

        def complete() -> bool:
            (status,) = self.status()
            last.update(status)
            return bool(last["bytes_cached"] == last["bytes_total"])

        until(complete, "everything is in the cache", within_s=within_s)
        return last
