"""What dies under a reader, and what the reader sees of it: a pause."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.cli import CommandLine
from tests.support.leaks import Sandbox, alive
from tests.support.models import digest_tree
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

LARGE = [f"weights/model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _resend() -> None:
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    need((major, minor) >= (6, 9), "taking over a mount without a failed read needs kernel 6.9")


def sha256sum(directory: Path, before: str = ":") -> subprocess.Popen[str]:
    """A reader that is not Python, on its way through the large files.

    The shell enters the directory, and not this process on its way to the shell: where nobody serves the mount, that would wait,
    and nobody would start who serves it. For the same reason it is the shell that holds files open (in `before`).
    """
    return subprocess.Popen(
        ["sh", "-c", f'cd "$0" && {before} && exec sha256sum "$@"', directory, *LARGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def sums(directory: Path) -> str:
    return "".join(f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in LARGE)


def kill_while_reading(
    cli: CommandLine, registry: FaultyRegistry, mounted: Path, process: str, expected: str, *, times: int
) -> None:
    """Kills what `process` of the status names, again and again as bytes come, under a reader that must not notice."""
    registry.rate.bytes_per_s = 2_500_000
    reader = sha256sum(mounted)
    for _ in range(times):
        sent = registry.statistics().bytes_sent
        until(lambda sent=sent: registry.statistics().bytes_sent > sent + 500_000, "bytes come")  # type: ignore[misc]
        pid = cli.status()[0][process]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: cli.status()[0][process] not in (None, pid), f"another {process}")  # type: ignore[misc]
    registry.rate.bytes_per_s = None
    output, _ = reader.communicate(timeout=60)
    assert expected == output


def serves(target: Path) -> bool:
    try:
        return bool(os.listdir(target))
    except OSError:
        return False


def test_a_killed_worker_is_a_pause(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """`kill -9` of the worker, three times, while sha256sum reads: the sums are right."""
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        kill_while_reading(cli, registry, mounted, "worker_pid", sums(small_model), times=3)


def test_a_killed_fetcher_is_a_pause(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """`kill -9` of the fetcher, twice, while sha256sum reads: the sums are right, and what was cached is not fetched again."""
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        kill_while_reading(cli, registry, mounted, "fetcher_pid", sums(small_model), times=2)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restarted_plugin_serves_what_was_published(
    sandbox: Sandbox, named: str, reference: str, small_model: Path, end: str
) -> None:
    """SIGTERM or SIGKILL of the plugin under a reader, and a new one: the reader goes on, and unpublish leaves nothing."""
    node = Node(sandbox, "--certs-dir", named, "--prefetch", "none")
    with node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": reference})
        # One reader holds a file open all the time and has read a part of it; another comes while nobody serves the mount.
        holding = sha256sum(
            target, f"exec 3<{LARGE[0]} && head -c 1500000 <&3 | sha256sum && read go && cat <&3 | sha256sum"
        )
        assert holding.stdout is not None
        assert holding.stdout.readline().startswith(
            hashlib.sha256((small_model / LARGE[0]).read_bytes()[:1_500_000]).hexdigest()
        )
        getattr(node, end)()
        coming = sha256sum(target)
        node.start()
        output, _ = coming.communicate(timeout=60)
        assert sums(small_model) == output
        output, _ = holding.communicate("go\n", timeout=60)
        rest = (small_model / LARGE[0]).read_bytes()[1_500_000:]
        assert f"{hashlib.sha256(rest).hexdigest()}  -\n{sums(small_model)}" == output
        # Kubelet repeats its calls: both answers are OK, and nothing is mounted twice.
        mounts = sandbox.mounts()
        node.publish("csi-1", target, {"reference": reference})
        assert mounts == sandbox.mounts()
        node.unpublish("csi-1", target)
        node.unpublish("csi-1", target)
        assert [] == node.leftovers()


def test_without_plugin_and_keeper_a_restart_mounts_again(
    sandbox: Sandbox, named: str, reference: str, small_model: Path
) -> None:
    """When nobody holds the file system any more, the restarted plugin mounts it anew at the same targets."""
    node = Node(sandbox, "--certs-dir", named)
    with node:
        targets = [node.target("pod-1"), node.target("pod-2")]
        for number, target in enumerate(targets):
            node.publish(f"csi-{number}", target, {"reference": reference})
        node.kill()
        for pid in sandbox.processes():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not sandbox.processes(), "everything is dead")
        with pytest.raises(OSError):
            os.listdir(targets[0])
        node.start()
        for target in targets:
            # In the background, for the registry has to be asked, and the plugin serves kubelet meanwhile.
            until(lambda target=target: serves(target), "the target is served again")  # type: ignore[misc]
            assert digest_tree(small_model) == digest_tree(target)
        # Each volume has a hold of its own again: the first to go takes nothing from the other.
        assert 2 == len(CommandLine(sandbox).status()[0]["grants"])
        for number, target in enumerate(targets):
            assert digest_tree(small_model) == digest_tree(target)
            node.unpublish(f"csi-{number}", target)
        assert [] == node.leftovers()


def test_readers_of_a_worker_that_hangs_are_let_go_when_nobody_can_replace_it(
    sandbox: Sandbox, named: str, reference: str, small_model: Path
) -> None:
    """Plugin, keeper and fetcher are dead, the stopped worker holds the device: later pods are served, old readers fail."""
    cli = CommandLine(sandbox)
    node = Node(sandbox, "--certs-dir", named)
    with node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": reference, "prefetch": "none"})
        worker = cli.status()[0]["worker_pid"]
        os.kill(worker, signal.SIGSTOP)
        command = ["sh", "-c", 'cd "$0" && exec sha256sum weights/*', str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
            try:
                node.kill()
                for pid in set(sandbox.processes()) - {worker, waiting.pid}:
                    os.kill(pid, signal.SIGKILL)
                node.start()
                assert b"" == waiting.communicate(timeout=60)[0]
                assert 0 != waiting.returncode
                until(lambda: serves(target), "the target is served again")
                assert digest_tree(small_model) == digest_tree(target)
            finally:
                os.kill(worker, signal.SIGKILL)
        node.unpublish("csi-1", target)
        assert [] == node.leftovers()


def test_a_volume_published_twice_shares_one_worker_and_ends_with_its_last_user(
    sandbox: Sandbox, named: str, reference: str, small_model: Path
) -> None:
    """Two pods, one file system; the first to go takes nothing from the other."""
    cli = CommandLine(sandbox)
    with Node(sandbox, "--certs-dir", named) as node:
        one, two = node.target("pod-1"), node.target("pod-2")
        node.publish("csi-1", one, {"reference": reference})
        node.publish("csi-2", two, {"reference": reference})
        (status,) = cli.status()
        assert one.stat().st_dev == two.stat().st_dev
        node.unpublish("csi-1", one)
        assert digest_tree(small_model) == digest_tree(two)
        assert alive(status["worker_pid"])
        node.unpublish("csi-2", two)
        assert not alive(status["worker_pid"])
        assert [] == node.leftovers()
