"""The demonstration's pod: a process of its own that reads the model, as a container would.

It has to be one: a page fault on a mapped file holds the interpreter's lock, and the registry that is to answer runs as
threads of the demonstration. A request is a line of JSON on the pod's standard input, its answer a line on its standard output.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fuse.errors import WeightlessError


def tensor(path: Path, name: str) -> dict[str, Any]:
    """Reads one tensor of a safetensors file (mmap): its shape, bytes and digest."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        value = file.get_tensor(name)
    return {"shape": list(value.shape), "bytes": value.nbytes, "sum": _sum(value)}


def load(path: Path) -> dict[str, Any]:
    """Reads every tensor: how many, and how many bytes."""
    from safetensors.numpy import load_file

    tensors = load_file(str(path))
    return {"tensors": len(tensors), "bytes": sum(value.nbytes for value in tensors.values())}


def sums(path: Path) -> dict[str, Any]:
    """The digest of every tensor."""
    from safetensors.numpy import load_file

    return {name: _sum(value) for name, value in load_file(str(path)).items()}


def _sum(value: Any) -> str:
    return hashlib.sha256(value.tobytes()).hexdigest()


class Pod:
    """The other process. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "weightless.demo.pod"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the demonstration, which then ends the pod
        )
        self._ask("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, path: Path) -> bytes:
        """A small file's content."""
        return str(self._ask("read", str(path))["text"]).encode()

    def tensor(self, path: Path, name: str) -> dict[str, Any]:
        return self._ask("tensor", str(path), name)

    def load(self, path: Path) -> dict[str, Any]:
        return self._ask("load", str(path))

    def sums(self, path: Path) -> dict[str, Any]:
        return self._ask("sums", str(path))

    def _ask(self, *request: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise WeightlessError("the pod has no pipes", where="demo")
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise WeightlessError(f"the pod could not do {request[0]!r}: {answer['error']}", where="demo")
        return answer


def _serve() -> None:
    # Imported before the first question: how long Python takes to start is not what is shown.
    import safetensors.numpy

    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            match operation:
                case "read":
                    answer = {"text": Path(arguments[0]).read_text()}
                case "tensor":
                    answer = tensor(Path(arguments[0]), arguments[1])
                case "load":
                    answer = load(Path(arguments[0]))
                case "sums":
                    answer = sums(Path(arguments[0]))
                case _:
                    answer = {"safetensors": safetensors.__version__}
        except Exception as error:  # noqa: BLE001 - it goes to the other side of the pipe
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
