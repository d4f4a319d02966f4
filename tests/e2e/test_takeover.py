"""Everything of the plugin's container is killed at once, under readers: only the keeper is left, and what it holds is enough."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.cli import COMMAND, CommandLine
from tests.support.fusemount import bound, user_namespace
from tests.support.leaks import Sandbox, alive
from tests.support.models import name_host
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

LARGE = [f"weights/model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
USER, PASSWORD = "robot", "canary-hunter2"
MMAP = """
import hashlib, mmap, sys
for name in sys.argv[1:]:
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        print(f"{hashlib.sha256(pages).hexdigest()}  {name}", flush=True)
"""


@pytest.fixture(autouse=True)
def _resend() -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    need(release >= (6, 9), "taking over a mount without a failed read needs kernel 6.9")


def sums(directory: Path) -> str:
    return "".join(f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in LARGE)


@contextmanager
def readers(directory: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """One that reads and one that maps, both on their way through the large files. The shell enters the directory."""
    commands = [["sha256sum", *LARGE], [sys.executable, "-I", "-S", "-c", MMAP, *LARGE]]
    with ExitStack() as stack:
        found = []
        for command in commands:
            process = subprocess.Popen(
                ["sh", "-c", 'cd "$0" && exec "$@"', directory, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            found.append(stack.enter_context(process))
        yield found


def finish(reading: list[subprocess.Popen[str]], expected: str) -> None:
    assert [process.communicate(timeout=90)[0] for process in reading] == [expected] * len(reading)


def kill_all(node: Node, cli: CommandLine) -> list[int]:
    """Plugin, workers and fetcher, as memory.oom.group does; the keeper has a container of its own."""
    assert node.process is not None
    pids = {node.process.pid}
    for status in cli.status():
        pids |= {pid for pid in (status["worker_pid"], status["fetcher_pid"]) if pid}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    node.kill()
    until(lambda: not any(alive(pid) for pid in pids), "they are dead")
    return sorted(pids)


@contextmanager
def keeper(sandbox: Sandbox) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    path = sandbox.run / "standing.sock"
    with subprocess.Popen([COMMAND, "keeper", "--socket", f"unix://{path}"], env=sandbox.environment) as process:
        try:
            until(path.exists, "the keeper listens")
            yield path, process
        finally:
            process.terminate()


def bytes_come(registry: FaultyRegistry, share: float, total: int) -> None:
    until(lambda: registry.statistics().bytes_sent > share * total, "bytes come")


@pytest.mark.parametrize("idmapped", [False, True], ids=["plain", "idmapped"])
def test_a_private_model_loads_to_its_end(
    sandbox: Sandbox, packed: PackedModel, small_model: Path, idmapped: bool
) -> None:
    """All are killed at 10 % and nothing is published again: the credentials come from the keeper, and lie on no disk."""
    total = sum((small_model / name).stat().st_size for name in LARGE)
    cli = CommandLine(sandbox)
    with FaultyRegistry(basic={USER: PASSWORD}, rate_bytes_per_s=4_000_000) as registry, ExitStack() as stack:
        packed.serve(registry, "models/small", "1.0")
        certs = sandbox.directory("certs")
        name_host(certs, registry.host)
        node = stack.enter_context(Node(sandbox, "--certs-dir", str(certs)))
        target = node.target("pod-1")
        node.publish(
            "csi-1",
            target,
            {"reference": f"{registry.host}/models/small:1.0"},
            secrets={"username": USER, "password": PASSWORD},
        )
        stack.callback(lambda: node.unpublish("csi-1", target))
        place = target
        if idmapped:
            place = sandbox.root / "idmapped"
            stack.enter_context(bound(target, place, user_namespace=stack.enter_context(user_namespace(100_000))))
        with readers(place) as reading:
            bytes_come(registry, 0.1, total)
            killed = kill_all(node, cli)
            node.start()
            (status,) = cli.status()
            assert status["worker_pid"] not in (None, *killed)  # it was ready only now
            registry.rate.bytes_per_s = None
            finish(reading, sums(small_model))
        cli.wait_cached()
        files = [
            node.log,
            *(path for place in (node.state, sandbox.run) for path in place.rglob("*") if path.is_file()),
        ]
        assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_a_standing_keeper_outlives_plugins_and_plugins_outlive_it(
    sandbox: Sandbox, named: str, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """Plugin and workers killed, keeper killed and started again, plugin and workers killed once more: readers notice nothing."""
    cli = CommandLine(sandbox)
    registry.rate.bytes_per_s = 4_000_000
    with ExitStack() as stack:
        path, first = stack.enter_context(keeper(sandbox))
        node = Node(sandbox, "--certs-dir", named)
        node.more = ("--keeper", f"unix://{path}")
        with node:
            target = node.target("pod-1")
            node.publish("csi-1", target, {"reference": reference})
            with readers(target) as reading:
                bytes_come(registry, 0.05, 20_000_000)
                kill_all(node, cli)
                node.start()
                assert cli.status()[0]["keeper_pid"] == first.pid
                first.kill()
                first.wait()
                path, second = stack.enter_context(keeper(sandbox))
                until(lambda: cli.status()[0]["keeper_pid"] == second.pid, "the plugin has found it")
                until(lambda: cli.status()[0]["condition"]["state"] == "healthy", "it is filled")
                kill_all(node, cli)
                node.start()
                registry.rate.bytes_per_s = None
                finish(reading, sums(small_model))
            node.unpublish("csi-1", target)
            assert [] == node.leftovers()
            assert not [fd for fd in Path(f"/proc/{second.pid}/fd").iterdir() if "/dev/fuse" in str(fd.readlink())]


def test_a_pod_that_vanished_while_nobody_looked_leaves_nothing(sandbox: Sandbox, named: str, reference: str) -> None:
    """Its directory is gone, kubelet will never ask: the next start lets go of the mount, and of nobody else's."""
    node = Node(sandbox, "--certs-dir", named)
    with node:
        gone, stays = node.target("pod-1"), node.target("pod-2")
        node.publish("csi-1", gone, {"reference": reference, "exclude-model-weights": "true"})
        node.publish("csi-2", stays, {"reference": reference})
        node.stop()
        subprocess.run(["umount", "--lazy", gone], check=True)
        shutil.rmtree(node.kubelet / "pods" / "pod-1")
        node.start()
        (status,) = CommandLine(sandbox).status()
        assert [str(stays)] == status["targets"]
        node.unpublish("csi-2", stays)
        assert [] == node.leftovers()


def test_a_worker_that_hangs_does_not_outlive_its_plugin(
    sandbox: Sandbox, named: str, reference: str, small_model: Path
) -> None:
    """Stopped, it does not notice that the plugin was killed: the successor of the plugin ends it, be it the first or a later
    one of its mount, and readers notice nothing."""
    cli = CommandLine(sandbox)
    with Node(sandbox, "--certs-dir", named) as node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": reference})
        stopped: list[int] = []
        for replaced in (False, True):
            worker = cli.status()[0]["worker_pid"]
            if replaced:
                os.kill(worker, signal.SIGKILL)
                until(lambda gone=worker: cli.status()[0]["worker_pid"] not in (None, gone), "another serves")
                worker = cli.status()[0]["worker_pid"]
            os.kill(worker, signal.SIGSTOP)
            stopped.append(worker)
            node.kill()
            assert alive(worker)
            node.start()
            with readers(target) as reading:
                finish(reading, sums(small_model))
            until(lambda: not any(alive(pid) for pid in stopped), "the stopped worker is dead")
        node.unpublish("csi-1", target)
        assert [] == node.leftovers()


def test_records_of_a_later_version_stop_neither_start_nor_unpublish(
    sandbox: Sandbox, named: str, reference: str, small_model: Path
) -> None:
    """What it understands is served; what it does not is left alone, and goes when kubelet asks."""
    node = Node(sandbox, "--certs-dir", named)
    with node:
        targets = [node.target(f"pod-{number}") for number in (1, 2)]
        node.publish("csi-1", targets[0], {"reference": reference})
        node.publish("csi-2", targets[1], {"reference": reference, "exclude-model-weights": "true"})
        node.stop()
        for path in (node.state / "volumes").iterdir():
            text = path.read_text()
            needs = 9 if '"csi-2"' in text else 1
            changed = text.replace('"needs": 1', f'"needs": {needs}')
            changed = re.sub(r'"version": \d', '"version": 9, "new": [1]', changed)
            assert changed != text
            path.write_text(changed)
        node.start()
        with readers(targets[0]) as reading:
            finish(reading, sums(small_model))
        assert (targets[1] / "config.json").read_bytes() == (small_model / "config.json").read_bytes()
        for number, target in enumerate(targets, 1):
            node.unpublish(f"csi-{number}", target)
        assert [] == node.leftovers()
