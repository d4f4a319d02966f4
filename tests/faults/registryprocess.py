"""A registry in a process of its own: `python -m tests.faults.registryprocess OPTIONS`, told what to do by lines of JSON.

The test starts what serves mounts, and readers must not share an interpreter with a registry; so it is neither's. `Registry` is
the test's side. It outlives nobody: when the test's end of the pipe closes, it ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.faults.content import Model
from tests.support.registry import FaultyRegistry, Tokens
from weightless.demo.registry import Request, Response

PIECE_BYTES: Final = 64 * 1024
UNREAD_BYTES: Final = 3 * PIECE_BYTES
"""What an answer that is left may cost beyond what was read of it: what waited, what was being sent."""
ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Of the files of one model, since the start."""

    count: int
    """Bytes that left for a socket, whether or not they arrived."""
    left_early: int
    """Answers that the client did not read to their end."""


class Registry:
    """A started registry, with an object store that it can redirect to. `tokens`: it wants Bearer tokens, and gives them."""

    def __init__(self, *, tokens: bool = False) -> None:
        self._options: dict[str, Any] = {"tokens": tokens, "port": 0}
        self._served: dict[str, Model] = {}
        self._start()
        self._options["port"] = int(self.host.rpartition(":")[2])

    def _start(self) -> None:
        # What it had before it has from its first moment: an address where it is missing would be a 404, and that is for ever.
        self._options["serve"] = {repository: model.to_json() for repository, model in self._served.items()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.registryprocess", json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.host: str = self._answer()["host"]

    def restart(self) -> None:
        """As after a crash: at the same address with the same content, but without counters, scripts and tokens."""
        self.close()
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cuts every connection. May be called twice."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def serve(self, model: Model, repository: str) -> str:
        """The reference of `model`, tagged v1."""
        self._served[repository] = model
        self._ask("serve", model=model.to_json(), repository=repository)
        return f"{self.host}/{repository}:v1"

    def sent(self, model: Model) -> Sent:
        answer = self._ask("statistics")
        count, left = (
            sum(answer[name].get(str(digest), 0) for digest in model.digests.values())
            for name in ("sent", "left_early")
        )
        return Sent(count=count, left_early=left)

    def bytes_sent(self, model: Model) -> int:
        return self.sent(model).count

    def rate(self, bytes_per_s: float | None) -> None:
        self._ask("rate", bytes_per_s=bytes_per_s)

    def script(self, kind: str, words: str, *, forever: bool = False) -> None:
        """As `FaultyRegistry.script`."""
        self._ask("script", kind=kind, words=words, forever=forever)

    def heal(self) -> None:
        """Ends all scripts, and lets go whom they hold."""
        self._ask("heal")

    def do(self, what: str) -> None:
        """Calls a method without arguments: expire_signatures, revoke_tokens, end_connections."""
        self._ask(what)

    def faults_used(self, kind: str) -> list[str]:
        """The faults that requests of a kind have met."""
        used: list[str] = self._ask("faults", kind=kind)["used"]
        return used

    def _ask(self, op: str, **arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the registry's process has died"
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Counting(FaultyRegistry):
    """Sends no further than its client has read, and knows which answers were not taken to their end.

    Otherwise the sockets' buffers hold megabytes that were sent and never read, and how many depends on the moment.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._under_way: dict[int, int] = {}
        self.left_early: Counter[str] = Counter()

    def answer(self, request: Request) -> Response:
        response = super().answer(request)
        if response.blob:
            response.pieces = _as_it_is_read(response.pieces, request.client[1])
        return response

    def count_bytes(self, response: Response, count: int) -> None:
        super().count_bytes(response, count)
        with self._state:
            self._under_way[id(response)] = self._under_way.get(id(response), 0) + count

    def finished(self, request: Request, response: Response) -> None:
        with self._state:
            if self._under_way.pop(id(response), 0) < response.length:
                self.left_early[response.blob] += 1


def _as_it_is_read(pieces: Iterable[bytes], port: int) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), PIECE_BYTES):
            while _unread(port) > PIECE_BYTES:
                time.sleep(0.001)
            yield piece[start : start + PIECE_BYTES]


def _unread(port: int) -> int:
    """How many bytes wait in the socket that has this port of loopback, by the kernel's table (proc_net_tcp)."""
    local = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split(None, 5)
        if fields[1] == local:
            return int(fields[4].partition(":")[2], 16)
    return 0


def _serve(registry: _Counting, store: _Counting, order: dict[str, Any]) -> dict[str, object]:
    match order.pop("op"):
        case "serve":
            _add(registry, store, order["repository"], order["model"])
        case "statistics":
            sent = [Counter(server.statistics().bytes_by_blob) for server in (registry, store)]
            return {"sent": sent[0] + sent[1], "left_early": registry.left_early + store.left_early}
        case "rate":
            registry.rate.bytes_per_s = order["bytes_per_s"]
        case "script":
            registry.script(order["kind"], order["words"], forever=order["forever"])
        case "heal":
            registry.clear_scripts()
            registry.release()
        case "expire_signatures":
            store.expire_signatures()
        case "revoke_tokens":
            registry.revoke_tokens()
        case "end_connections":
            registry.end_connections()
            store.end_connections()
        case "faults":
            return {"used": [entry.fault for entry in registry.requests(order["kind"]) if entry.fault != "ok"]}
    return {}


def _add(registry: _Counting, store: _Counting, repository: str, model: str) -> None:
    packed = Model.from_json(model).packed
    for server in (registry, store):
        packed.serve(server, repository, "v1")


def main() -> None:
    options = json.loads(sys.argv[1])
    tokens = Tokens(anonymous=True) if options["tokens"] else None
    store = _Counting()
    registry = _Counting(tokens=tokens, port=options["port"], object_store=store)
    store.rate = registry.rate  # of both together, as of one link
    for repository, model in options.get("serve", {}).items():
        _add(registry, store, repository, model)
    with store, registry:
        sys.stdout.write(json.dumps({"host": registry.host}) + "\n")
        sys.stdout.flush()
        for line in sys.stdin:
            sys.stdout.write(json.dumps(_serve(registry, store, json.loads(line))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
