"""The controller as a process in a sandbox: without a single capability, without a home, without a cache."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import grpc

from csi.pb import csi_pb2, csi_pb2_grpc
from tests.support.cli import COMMAND
from tests.support.leaks import Sandbox
from tests.support.waiting import until

_BARE: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Not another user: the interpreter may live where only root may go."""


class ControllerProcess:
    """`weightless csi --mode controller` in `sandbox`."""

    def __init__(self, sandbox: Sandbox, *options: str) -> None:
        self.sandbox = sandbox
        self.socket: Path = sandbox.directory("controller") / "csi.sock"
        self.log = sandbox.root / "controller.log"
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_BARE, COMMAND, *self._options, "csi", "--mode", "controller"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.sandbox.environment, "CSI_ENDPOINT": f"unix://{self.socket}", "HOME": "/nonexistent"},
                cwd=self.sandbox.root,
            )
        self._channel = grpc.insecure_channel(
            f"unix://{self.socket}",
            options=[("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)],
        )
        self.identity = csi_pb2_grpc.IdentityStub(self._channel)
        self.controller = csi_pb2_grpc.ControllerStub(self._channel)
        until(self._ready, "the controller is ready", within_s=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.last_words())  # pytest shows it with the failure
        self._channel.close()
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.last_words()

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the controller ended:\n{self.last_words()}"
        try:
            return bool(self.identity.Probe(csi_pb2.ProbeRequest(), timeout=1).ready.value)
        except grpc.RpcError:
            return False

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-16000:]
