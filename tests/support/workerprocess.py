"""A worker as it really runs: `python -m fuse.worker` on a real mount, with the fake fetcher at the other end of its session."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fuse import spec, wire
from fuse.filesystem import table
from tests.support.fetchsession import FakeFetcher
from tests.support.fusemount import FuseMount, mounted
from tests.support.waiting import until

NOBODY = 65534


def table_of(files: dict[str, tuple[int, int, int]], blobs: list[bytes]) -> table.Table:
    """Files as name → (blob, offset, size), directories implied; a few levels deep is enough."""
    nodes = [table.Node(parent=1, name="", kind="d", mode=0o555, mtime_ns=0)]
    directories = {"": 1}
    for path, (blob, offset, size) in files.items():
        parent = ""
        for part in path.split("/")[:-1]:
            path_here = f"{parent}/{part}" if parent else part
            if path_here not in directories:
                nodes.append(table.Node(parent=directories[parent], name=part, kind="d", mode=0o555, mtime_ns=0))
                directories[path_here] = len(nodes)
            parent = path_here
        nodes.append(
            table.Node(
                parent=directories[parent],
                name=path.rsplit("/", 1)[-1],
                kind="f",
                mode=0o444,
                mtime_ns=1_700_000_000_123_456_789,
                size=size,
                blob=blob,
                offset=offset,
            )
        )
    return table.Table(
        artifacts=(
            table.Artifact(digest=f"sha256:{'0' * 64}", media_type="application/vnd.cncf.model.manifest.v1+json"),
        ),
        blobs=tuple(
            table.Blob(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), "application/octet-stream")
            for content in blobs
        ),
        nodes=tuple(nodes),
    )


class MountedWorker:
    """A mount and its worker of the moment."""

    def __init__(
        self, mount: FuseMount, fetcher: FakeFetcher, content: table.Table, *, prefetch: spec.Prefetch
    ) -> None:
        self.mount = mount
        self.fetcher = fetcher
        self.reply = b""
        self.conditions: list[spec.Condition] = []
        self.encoded = table.encode(content)
        self._spec = spec.MountSpec(
            parts=(spec.Part(registry="registry.example", digest=content.artifacts[0].digest),),
            table=table.identity(self.encoded),
            reference="registry.example/model@sha256:0",
            prefetch=prefetch,
        )
        self._asks = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: wire.Channel[spec.FromWorker] | None = None

    @property
    def path(self) -> Path:
        return self.mount.path

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, device: int | None = None) -> None:
        """Starts a worker, the first or a successor. `device`: in place of the mount's."""
        self._close_channel()
        ours, theirs = wire.pair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fuse.worker", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._channel = wire.Channel[spec.FromWorker](ours, spec.FromWorker)
        ours.settimeout(20)
        content = wire.sealed_memfd("table", self.encoded)
        with self.fetcher.session() as session:
            self._channel.send(
                spec.Start(spec=self._spec, init=self.mount.init, reply=self.reply, uid=NOBODY, gid=NOBODY),
                [self.mount.device if device is None else device, session.fileno(), content],
            )
        os.close(content)
        started = self.receive()
        assert isinstance(started, spec.Started), started
        self.reply = started.reply

    def receive(self) -> spec.FromWorker:
        assert self._channel is not None
        received = self._channel.receive()
        assert received is not None, "the worker ended"
        if isinstance(received[0], spec.Condition):
            self.conditions.append(received[0])
        return received[0]

    def report(self) -> spec.Report:
        assert self._channel is not None
        self._asks += 1
        self._channel.send(spec.Ask(id=self._asks))
        while True:
            message = self.receive()
            if isinstance(message, spec.Report) and message.id == self._asks:
                return message

    def condition(self) -> spec.Condition:
        """The next one that is sent."""
        while not isinstance(message := self.receive(), spec.Condition):
            pass
        return message

    def replace_fetcher(self) -> None:
        """A new session, as after the fetcher's death."""
        assert self._channel is not None
        with self.fetcher.session() as session:
            self._channel.send(spec.NewSession(), [session.fileno()])

    def send(self, message: spec.ToWorker) -> None:
        assert self._channel is not None
        self._channel.send(message)

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._close_channel()

    def hang_up(self) -> int:
        """Closes the control socket, as a dying holder does; returns the worker's exit code."""
        assert self.process is not None
        self._close_channel()
        return self.process.wait(10)

    def waiting_for(self, reads: int) -> None:
        until(lambda: self.report().waiting >= reads, f"{reads} reads that wait")

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def close(self) -> None:
        self._close_channel()
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(10)


@contextmanager
def mounted_worker(
    blobs: list[bytes],
    files: dict[str, tuple[int, int, int]],
    *,
    prefetch: spec.Prefetch = "none",
    read_only: bool = True,
    start: bool = True,
) -> Iterator[MountedWorker]:
    """A mount of `files` served by a worker process; all is gone afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightless-worker-")))
        directory.chmod(0o755)
        cache = directory / "cache"
        cache.mkdir()
        fetcher = FakeFetcher(cache, blobs)
        stack.callback(fetcher.close)
        mount = stack.enter_context(mounted(directory / "mount", read_only=read_only))
        worker = MountedWorker(mount, fetcher, table_of(files, blobs), prefetch=prefetch)
        stack.callback(worker.close)
        if start:
            worker.start()
        yield worker
