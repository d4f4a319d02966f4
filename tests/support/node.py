"""The node plugin as a process in a sandbox, and kubelet's side of its socket."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from csi.pb import csi_pb2, csi_pb2_grpc
from tests.support.cli import COMMAND
from tests.support.leaks import Sandbox
from tests.support.waiting import until

MULTI_READER: Final = csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY


class Node:
    """`weightless csi` in `sandbox`. The context ends it with SIGTERM; what is published stays published."""

    def __init__(self, sandbox: Sandbox, *options: str, metrics_address: str | None = None) -> None:
        self.sandbox = sandbox
        self.kubelet = sandbox.root / "kubelet"
        self.state = sandbox.root / "state"
        self.log = sandbox.root / "node.log"
        self.socket = self.kubelet / "plugins" / "csi.weightless.dev" / "csi.sock"
        self.options = options
        self.metrics_address = metrics_address
        self.more: tuple[str, ...] = ()
        """Options of `csi` itself."""
        self.environment: dict[str, str] = {}
        """Beyond the sandbox's own."""
        self.start_limit_s = 30.0
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self.socket.parent.mkdir(parents=True, exist_ok=True)

    def argv(self) -> list[str]:
        return [
            *(COMMAND, "--cache-dir", str(self.sandbox.cache), "--log-level", "debug", *self.options, "csi"),
            *("--endpoint", f"unix://{self.socket}", "--node-id", "test-node"),
            *("--kubelet-dir", str(self.kubelet), "--state-dir", str(self.state), *self.more),
            *(("--metrics-address", self.metrics_address) if self.metrics_address else ()),
        ]

    # ---- life ----

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.last_words())  # pytest shows it with the failure
        self.stop()

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.sandbox.environment, "PYTHONFAULTHANDLER": "1", **self.environment},
                cwd=self.sandbox.root,
            )
        # Without a proxy, and without the back-off that a channel has after a failed connect.
        self._channel = grpc.insecure_channel(
            f"unix://{self.socket}",
            options=[("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)],
        )
        self.identity = csi_pb2_grpc.IdentityStub(self._channel)
        self.node = csi_pb2_grpc.NodeStub(self._channel)
        until(self._ready, "the node plugin is ready", within_s=self.start_limit_s)
        return self

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As if the container were killed: no chance to tidy up."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # it writes where its threads are, and ends
            process.wait()
            raise AssertionError(f"the node plugin did not end:\n{self.last_words()}") from None

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the node plugin ended:\n{self.last_words()}"
        try:
            return bool(self.identity.Probe(csi_pb2.ProbeRequest(), timeout=1).ready.value)
        except grpc.RpcError:
            return False

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-16000:]

    # ---- kubelet's calls ----

    def target(self, pod: str, volume: str = "model") -> Path:
        """A target path of kubelet's shape, whose parent exists."""
        target = self.kubelet / "pods" / pod / "volumes" / "kubernetes.io~csi" / volume / "mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def publish(
        self,
        volume_id: str,
        target: Path | str,
        attributes: Mapping[str, str],
        /,
        *,
        secrets: Mapping[str, str] | None = None,
        timeout_s: float = 60,
        **changes: Any,
    ) -> None:
        """`changes` are other values for fields of the request. Raises grpc.RpcError."""
        capability = csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(),
            access_mode=csi_pb2.VolumeCapability.AccessMode(mode=MULTI_READER),
        )
        request = csi_pb2.NodePublishVolumeRequest(
            **{
                "volume_id": volume_id,
                "target_path": str(target),
                "volume_capability": capability,
                "readonly": True,
                "volume_context": {"csi.storage.k8s.io/ephemeral": "true", **attributes},
                "secrets": dict(secrets or {}),
                **changes,
            }
        )
        self.node.NodePublishVolume(request, timeout=timeout_s)

    def unpublish(self, volume_id: str, target: Path | str) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        self.node.NodeUnpublishVolume(request, timeout=60)

    def stats(self, volume_id: str, target: Path | str) -> csi_pb2.NodeGetVolumeStatsResponse:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(target))
        return self.node.NodeGetVolumeStats(request, timeout=10)

    # ---- what is left ----

    def leftovers(self) -> list[str]:
        """Mounts, target directories and records: none of these may be there when nothing is published."""
        found = [f"mount {point}" for point in self.sandbox.mounts()]
        found += [f"target {path}" for path in self.kubelet.glob("pods/*/volumes/kubernetes.io~csi/*/mount")]
        found += [f"mount point {path}" for path in self.socket.parent.glob("mounts/*")]
        found += [f"record {path}" for path in self.state.glob("volumes/*")]
        found += [f"record {path}" for path in self.state.glob("native/*.json")]
        return found
