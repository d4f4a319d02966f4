"""The plugin with the real data plane: what a pod sees, and what is left when the plugin dies anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fuse.mounting import selinux
from fuse.mounting.mountinfo import MountTable
from tests.csi.harness import Kubelet, Place, capability, code_of, details_of, running
from tests.csi.real import CONFIG, WEIGHTS, PluginProcess, access, model_registry, real_manager
from tests.support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


def test_a_pod_reads_the_model(place: Place, reference: str) -> None:
    """Both files byte for byte, through the target; totals in the stats; nothing afterwards."""
    target = place.target()
    with running(place, real_manager(place), access=access(place)) as (_, kubelet):
        kubelet.publish(target, reference=reference)
        assert (target / "config.json").read_bytes() == CONFIG
        assert (target / "model.safetensors").read_bytes() == WEIGHTS
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").write_text("x")
        assert kubelet.stats(target).usage[0].total == len(CONFIG) + len(WEIGHTS)
        assert not kubelet.stats(target).volume_condition.abnormal
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_a_label_is_refused_where_selinux_is_off(place: Place, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cure, before the kernel is asked for what it would only call invalid; nothing is left."""
    monkeypatch.setattr(selinux, "active", lambda: False)
    target = place.target()
    label = capability(flags=(f"context={selinux.FOR_CONTAINERS}",))
    with running(place, real_manager(place), access=access(place)) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as refused:
            kubelet.publish(target, reference=reference, volume_capability=label)
        assert code_of(refused.value) == grpc.StatusCode.FAILED_PRECONDITION
        assert "leave the option context= out of mountOptions" in details_of(refused.value)
        assert place.leftovers() == []


READER = """
import sys
with open(sys.argv[1], "rb") as file:
    for line in sys.stdin:
        sys.stdout.write(file.read(int(line)).hex() + chr(10))
        sys.stdout.flush()
"""


@contextmanager
def reader(path: Path) -> Iterator[Callable[[int], bytes]]:
    """Another process with the file open. The test's own must not hold one while it starts a plugin: the forked child would close
    it, ask the worker that is not there yet, and wait for ever."""
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def read(count: int) -> bytes:
            print(count, file=process.stdin, flush=True)
            return bytes.fromhex(process.stdout.readline())  # type: ignore[union-attr]

        try:
            yield read
        finally:
            process.stdin.close()
            if process.wait(10) != 0:
                pytest.fail("the reader saw an error")


def test_a_volume_outlives_its_plugin(place: Place, reference: str) -> None:
    """SIGTERM, and SIGKILL: an open file reads on after the restart, and the volume is unpublished properly."""
    target = place.target()
    first = PluginProcess(place)
    with Kubelet(place.socket) as kubelet:
        kubelet.publish(target, reference=reference)
    with reader(target / "model.safetensors") as read:
        assert read(10) == WEIGHTS[:10]
        assert first.stop() == 0
        second = PluginProcess(place)
        assert read(1000) == WEIGHTS[10:1010]
        second.kill()
        third = PluginProcess(place)
        assert read(len(WEIGHTS)) == WEIGHTS[1010:]
    with Kubelet(place.socket) as kubelet:
        assert not kubelet.stats(target).volume_condition.abnormal
        kubelet.publish(target, reference=reference)
        kubelet.unpublish(target)
    assert place.leftovers() == []
    assert third.stop() == 0


def test_stats_answer_at_once_while_nothing_else_does(place: Place, reference: str) -> None:
    """Worker and fetcher are stopped, as if their disk hung: the plugin answers from memory."""
    target = place.target()
    manager = real_manager(place)
    with running(place, manager, access=access(place)) as (_, kubelet):
        kubelet.publish(target, reference=reference, attributes={"prefetch": "none"})
        (status,) = manager.statuses()
        pids = [pid for pid in (status.worker_pid, status.fetcher_pid) if pid]
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert kubelet.stats(target).usage[0].total == len(CONFIG) + len(WEIGHTS)
            assert time.monotonic() - started < 0.5
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_a_mount_that_is_gone_is_made_again(place: Place, reference: str) -> None:
    """Like a node that was restarted: the record is there, mounts and processes are not."""
    target = place.target()
    with running(place, real_manager(place), access=access(place)) as (plugin, kubelet):
        kubelet.publish(target, reference=reference)
        record = plugin._records.all()[0]
        kubelet.unpublish(target)
    plugin._records.put(record)
    with running(place, real_manager(place), access=access(place)) as (plugin, kubelet):
        thread = plugin._mender._thread
        assert thread is not None
        deadline = time.monotonic() + 20
        while not plugin._publisher.is_served(record):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert (target / "config.json").read_bytes() == CONFIG
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_an_aborted_mount_is_made_anew_for_later_pods(
    place: Place, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel without RESEND, `without-resend = abort`: who read gets an error, the target shows a new file system."""
    monkeypatch.setenv("WEIGHTLESS_TEST_WITHOUT_RESEND", "1")
    target = place.target()
    manager = real_manager(place, without_resend="abort")
    with running(place, manager, access=access(place)) as (_, kubelet):
        kubelet.publish(target, reference=reference, attributes={"prefetch": "none"})
        before = MountTable.read().at(target)
        (status,) = manager.statuses()
        assert status.fetcher_pid is not None
        assert status.worker_pid is not None
        os.kill(status.fetcher_pid, signal.SIGSTOP)
        command = ["sh", "-c", 'cd "$0" && exec cat model.safetensors', str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as failing:
            until(lambda: manager.statuses()[0].waiting, "a read waits in the worker")
            os.kill(status.worker_pid, signal.SIGKILL)
            _, said = failing.communicate(timeout=30)
        os.kill(status.fetcher_pid, signal.SIGCONT)
        assert failing.returncode != 0
        assert b"not connected" in said or b"abort" in said, said

        def anew() -> bool:
            now = MountTable.read().at(target)
            return before is not None and now is not None and now.device != before.device

        until(anew, "it is mounted anew")
        until(lambda: not kubelet.stats(target).volume_condition.abnormal, "its condition is well")
        with reader(target / "model.safetensors") as read:
            assert read(len(WEIGHTS)) == WEIGHTS
        kubelet.unpublish(target)
        assert place.leftovers() == []


def steps_of(place: Place, reference: str) -> tuple[list[str], list[str]]:
    """The steps of a publish and of an unpublish, as they happen."""
    steps: list[str] = []
    with running(place, real_manager(place), access=access(place), checkpoint=steps.append) as (_, kubelet):
        kubelet.publish(place.target(), reference=reference)
        published, steps[:] = list(steps), []
        kubelet.unpublish(place.target())
    return published, steps


PUBLISH_STEPS = (
    "publish-resolved",
    "publish-recorded",
    "publish-attached",
    "publish-mounted",
    "publish-kept",
    "publish-started",
    "publish-live",
    "publish-held",
    "publish-bound",
    "publish-done",
)
UNPUBLISH_STEPS = (
    "unpublish-begun",
    "unpublish-recorded",
    "undo-unbound",
    "undo-target-removed",
    "undo-mount-released",
    "undo-mount-unmounted",
    "undo-dropped",
    "undo-done",
)


def test_the_table_of_steps_is_complete(place: Place, reference: str) -> None:
    """What the next test kills between is what really happens."""
    published, unpublished = steps_of(place, reference)
    assert tuple(published) == PUBLISH_STEPS
    assert tuple(unpublished) == UNPUBLISH_STEPS


@pytest.mark.parametrize("retry", [True, False], ids=["retried", "given-up"])
@pytest.mark.parametrize("step", PUBLISH_STEPS)
def test_a_plugin_killed_in_a_publish_leaves_nothing(place: Place, reference: str, step: str, retry: bool) -> None:
    """Killed after each step, started again: the retry succeeds, an unpublish cleans up, and no trace is left."""
    process = PluginProcess(place, die_after=step)
    target = place.target()
    with Kubelet(place.socket) as kubelet, pytest.raises(grpc.RpcError):
        kubelet.publish(target, reference=reference)
    assert process.wait_dead() == -9
    with running(place, real_manager(place), access=access(place)) as (_, kubelet):
        if retry:
            kubelet.publish(target, reference=reference)
            assert (target / "config.json").read_bytes() == CONFIG
        kubelet.unpublish(target)
        assert place.leftovers() == []


@pytest.mark.parametrize("step", UNPUBLISH_STEPS)
def test_a_plugin_killed_in_an_unpublish_leaves_nothing(place: Place, reference: str, step: str) -> None:
    """Killed after each step, started again: the retried unpublish succeeds, and no trace is left."""
    process = PluginProcess(place, die_after=step)
    target = place.target()
    with Kubelet(place.socket) as kubelet:
        kubelet.publish(target, reference=reference)
        with pytest.raises(grpc.RpcError):
            kubelet.unpublish(target)
    assert process.wait_dead() == -9
    with running(place, real_manager(place), access=access(place)) as (_, kubelet):
        kubelet.unpublish(target)
        assert place.leftovers() == []
    assert MountTable.read().below(place.root) == ()
