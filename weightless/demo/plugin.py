"""A node plugin as a process of its own, and kubelet's side of the conversation with it: for the demonstration and the
benchmarks. Every path lies under one directory, so that it touches nothing of the machine's own kubelet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fuse.errors import MountFailed

_START_S: Final = 30.0
_CALL_S: Final = 120.0


class NodePlugin:
    """`weightless csi` and a client of its socket. Use it as a context manager."""

    def __init__(self, directory: Path, *, cache_dir: Path, arguments: Iterable[str] = ()) -> None:
        self.directory = directory
        self.cache_dir = cache_dir
        self.kubelet_dir = directory / "kubelet"
        # Not deep below kubelet's directory, as in a cluster: a socket's path may have 107 bytes, and TMPDIR may be long.
        self.socket = directory / "csi.sock"
        self.run_dir = directory / "run"
        self.log = directory / "plugin.log"
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Any = None

    @property
    def pid(self) -> int:
        """Raises MountFailed when it does not run."""
        if self._process is None:
            raise MountFailed("the node plugin does not run", where=str(self.socket))
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the plugin answers Probe. Raises MountFailed with the end of its log; then nothing runs."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        import grpc

        from csi.pb import csi_pb2, csi_pb2_grpc

        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [sys.executable, "-m", "weightless", "csi", "--endpoint", f"unix://{self.socket}"]
        command += [
            "--node-id",
            "here",
            "--kubelet-dir",
            str(self.kubelet_dir),
            "--state-dir",
            str(self.directory / "state"),
        ]
        command += ["--cache-dir", str(self.cache_dir), *self._arguments]
        environment = {**os.environ, "WEIGHTLESS_RUN_DIR": str(self.run_dir)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._channel = grpc.insecure_channel(f"unix://{self.socket}", options=[("grpc.enable_http_proxy", 0)])
        self.node = csi_pb2_grpc.NodeStub(self._channel)
        identity = csi_pb2_grpc.IdentityStub(self._channel)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                if identity.Probe(csi_pb2.ProbeRequest(), timeout=1.0, wait_for_ready=True).ready.value:
                    return
            except grpc.RpcError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise MountFailed(
                        f"the node plugin did not start: {self.last_words()}", where=str(self.socket)
                    ) from error
            time.sleep(0.01)

    def target(self, name: str) -> Path:
        """The path that kubelet would ask for; its parent is made, as kubelet does."""
        target = self.kubelet_dir / "pods" / f"pod-{name}" / "volumes" / "kubernetes.io~csi" / "model" / "mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def publish(self, name: str, attributes: dict[str, str]) -> Path:
        """NodePublishVolume of an inline volume; returns the target. Raises MountFailed."""
        import grpc

        from csi.pb import csi_pb2

        target = self.target(name)
        mode = csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=f"csi-{name}",
            target_path=str(target),
            readonly=True,
            volume_capability=csi_pb2.VolumeCapability(
                mount=csi_pb2.VolumeCapability.MountVolume(),
                access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode),
            ),
            volume_context={"csi.storage.k8s.io/ephemeral": "true", **attributes},
        )
        try:
            self.node.NodePublishVolume(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise MountFailed(f"NodePublishVolume: {error.code().name}: {error.details()}") from error
        return target

    def unpublish(self, name: str) -> None:
        import grpc

        from csi.pb import csi_pb2

        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=f"csi-{name}", target_path=str(self.target(name)))
        try:
            self.node.NodeUnpublishVolume(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise MountFailed(f"NodeUnpublishVolume: {error.code().name}: {error.details()}") from error

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL. What is published stays mounted: unpublish first."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self) -> str:
        """The end of the plugin's log, for an error."""
        with suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return " / ".join(lines[-3:])[-600:]
        return "it wrote nothing"
