"""Publish and unpublish over the socket, on mounts that nobody serves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from csi.pb import csi_pb2 as pb
from fuse.errors import Forbidden, MountFailed, NoSpace, Unavailable, WeightlessError
from fuse.mounting import device
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.status import Health
from tests.csi.fakes import PASSWORD, PRIVATE, FakeManager
from tests.csi.harness import Place, capability, code_of, details_of, running

pytestmark = pytest.mark.kernel

CREDENTIALS = {"username": "bob", "password": PASSWORD}


def test_a_published_volume_is_a_read_only_bind_of_the_shared_mount(place: Place, manager: FakeManager) -> None:
    """The target shows the FUSE file system, read-only, without set-uid, devices and programs."""
    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target)
        table = MountTable.read()
        entry = table.at(target)
        assert entry is not None
        assert entry.ours
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(entry.options)
        (identity,) = manager.mounts
        assert table.at(place.mounts / identity).device == entry.device  # type: ignore[union-attr]
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_one_mount_serves_two_volumes_and_goes_with_the_last(place: Place, manager: FakeManager) -> None:
    """Two targets share one FUSE mount; a different view does not."""
    first, second, third = (place.target(volume=name) for name in ("a", "b", "c"))
    with running(place, manager) as (_, kubelet):
        kubelet.publish(first, volume_id="v1")
        kubelet.publish(second, volume_id="v2")
        assert len(manager.mounts) == 1
        kubelet.publish(third, volume_id="v3", attributes={"exclude-file-patterns": '["*.md"]'})
        assert len(manager.mounts) == 2
        kubelet.unpublish(first, volume_id="v1")
        assert len(manager.mounts) == 2
        kubelet.unpublish(third, volume_id="v3")
        kubelet.unpublish(second, volume_id="v2")
        assert place.leftovers() == []


def test_one_volume_at_two_targets(place: Place, manager: FakeManager) -> None:
    """A PersistentVolume used by two pods of a node is published twice, and taken back one by one."""
    first, second = place.target(pod="pod-1"), place.target(pod="pod-2")
    with running(place, manager) as (_, kubelet):
        kubelet.publish(first)
        kubelet.publish(second)
        kubelet.unpublish(first)
        assert MountTable.read().at(second) is not None
        kubelet.unpublish(second)
        assert place.leftovers() == []


def test_repeated_calls_change_nothing(place: Place, manager: FakeManager) -> None:
    """Publish and unpublish are idempotent; so is an unpublish of what never was."""
    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.unpublish(target)
        kubelet.publish(target)
        kubelet.publish(target)
        layers = [entry for entry in MountTable.read().entries if entry.mountpoint == target]
        assert len(layers) == 1
        kubelet.unpublish(target)
        kubelet.unpublish(target)
        assert place.leftovers() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": {"prefetch": "none"}},
        {"readonly": False},
        {"reference": "registry.example.com/models/other:v1"},
        {"volume_capability": capability(pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)},
        {"volume_id": "csi-2"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_different_publish_at_a_used_target_is_refused(place: Place, manager: FakeManager, changes: dict) -> None:
    """ALREADY_EXISTS, and the volume that is there stays."""
    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target)
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(target, **changes)
        assert code_of(caught.value) is grpc.StatusCode.ALREADY_EXISTS
        assert MountTable.read().at(target) is not None
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_every_publish_proves_its_own_credentials(place: Place, manager: FakeManager) -> None:
    """What one pod may read, another without credentials may not, although it is mounted already."""
    first, second = place.target(volume="a"), place.target(volume="b")
    with running(place, manager) as (_, kubelet):
        kubelet.publish(first, volume_id="v1", reference=PRIVATE, secrets=CREDENTIALS)
        for secrets in (None, {"username": "eve", "password": "wrong-password"}):
            with pytest.raises(grpc.RpcError) as caught:
                kubelet.publish(second, volume_id="v2", reference=PRIVATE, secrets=secrets)
            assert code_of(caught.value) is grpc.StatusCode.UNAUTHENTICATED
            assert "wrong-password" not in details_of(caught.value)
        assert not second.exists()
        kubelet.unpublish(first, volume_id="v1")
        assert place.leftovers() == []


def test_a_repeated_publish_renews_credentials_and_never_harms(place: Place, manager: FakeManager) -> None:
    """New secrets of a published volume replace the old; wrong ones are passed over, for the pod is running."""
    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE, secrets=CREDENTIALS)
        kubelet.publish(target, reference=PRIVATE, secrets=CREDENTIALS)
        assert len(manager.resolved) == 1
        kubelet.publish(target, reference=PRIVATE, secrets={**CREDENTIALS, "username": "alice"})
        ((access,),) = (grants.values() for grants in manager.grants.values())
        assert access.endpoints[0].credential.username == "alice"  # type: ignore[union-attr]
        kubelet.publish(target, reference=PRIVATE, secrets={"username": "bob", "password": "revoked"})
        assert MountTable.read().at(target) is not None
        kubelet.unpublish(target)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no answer"), grpc.StatusCode.UNAVAILABLE),
        (Forbidden("not yours"), grpc.StatusCode.PERMISSION_DENIED),
        (NoSpace("disk full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (MountFailed("EPERM"), grpc.StatusCode.INTERNAL),
        (RuntimeError(f"GET https://bob:{PASSWORD}@registry failed"), grpc.StatusCode.INTERNAL),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
@pytest.mark.parametrize("where", ["on_resolve", "on_acquire"])
def test_a_failed_publish_leaves_nothing(
    place: Place, manager: FakeManager, error: Exception, code: grpc.StatusCode, where: str
) -> None:
    """Whatever fails, wherever: the right code, no secret in the message, and no trace on the node."""

    def fail(*_: object) -> None:
        raise error

    setattr(manager, where, fail)
    with running(place, manager) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(place.target(), secrets=CREDENTIALS)
        assert code_of(caught.value) is code
        assert PASSWORD not in details_of(caught.value)
        assert place.leftovers() == []
    assert manager.closed_with is False


def every_step(place: Place) -> list[str]:
    """The names of the steps of a publish, as one that succeeds tells them."""
    steps: list[str] = []
    manager = FakeManager()
    with running(place, manager, checkpoint=steps.append) as (_, kubelet):
        kubelet.publish(place.target())
        published = list(steps)
        kubelet.unpublish(place.target())
    return published


def test_a_failure_after_any_step_leaves_nothing(place: Place) -> None:
    """An error is raised after each step in turn; then the same publish succeeds."""
    steps = every_step(place)
    assert len(steps) >= 6
    for step in steps:
        armed = threading.Event()
        armed.set()

        def fail(name: str, step: str = step, armed: threading.Event = armed) -> None:
            if name == step and armed.is_set():
                raise WeightlessError(f"failed after {step}")

        with running(place, FakeManager(), checkpoint=fail) as (_, kubelet):
            with pytest.raises(grpc.RpcError) as caught:
                kubelet.publish(place.target())
            assert code_of(caught.value) is grpc.StatusCode.INTERNAL
            assert place.leftovers() == [], step
            armed.clear()
            kubelet.publish(place.target())
            kubelet.unpublish(place.target())
            assert place.leftovers() == [], step


class Gate:
    """Holds a resolve until it is opened, or cancelled."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.cancelled = threading.Event()
        self.calls = 0

    def __call__(self, _reference: str, cancel: threading.Event | None) -> None:
        assert cancel is not None
        self.calls += 1
        self.entered.set()
        while not self.open.wait(0.01):
            if cancel.is_set():
                self.cancelled.set()
                return


def test_the_same_publish_joins_the_one_under_way(place: Place, manager: FakeManager) -> None:
    """Kubelet's retry waits for the first call's work and shares its outcome; the work is done once."""
    gate = Gate()
    manager.on_resolve = gate
    target = place.target()
    with running(place, manager) as (plugin, kubelet), ThreadPoolExecutor(4) as pool:
        first = pool.submit(kubelet.publish, target, timeout_s=0.2)
        assert gate.entered.wait(5)
        assert code_of(first.exception(5)) is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[arg-type]
        second = pool.submit(kubelet.publish, target)
        third = pool.submit(kubelet.publish, target)
        assert plugin._publisher.operations.count() == 1
        gate.open.set()
        second.result(10)
        third.result(10)
        assert gate.calls == 1
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_who_joins_hears_why_before_the_deadline(
    place: Place, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ABORTED with a sentence, and not the DEADLINE_EXCEEDED that gRPC makes up."""
    monkeypatch.setattr("csi.slots._MARGIN_S", 20.0)
    gate = Gate()
    manager.on_resolve = gate
    target = place.target()
    with running(place, manager) as (_, kubelet), ThreadPoolExecutor(1) as pool:
        first = pool.submit(kubelet.publish, target)
        assert gate.entered.wait(5)
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(target, timeout_s=20.1)
        assert code_of(caught.value) is grpc.StatusCode.ABORTED
        assert "the publish is still under way" in details_of(caught.value)
        gate.open.set()
        first.result(10)
        kubelet.unpublish(target)


@pytest.mark.parametrize("changes", [{"secrets": CREDENTIALS}, {"readonly": False}, {"volume_id": "csi-2"}], ids=str)
def test_a_different_publish_under_way_is_aborted(place: Place, manager: FakeManager, changes: dict) -> None:
    """ABORTED, which kubelet tries again; other secrets make a request different, for each must prove its own."""
    gate = Gate()
    manager.on_resolve = gate
    target = place.target()
    with running(place, manager) as (_, kubelet), ThreadPoolExecutor(1) as pool:
        first = pool.submit(kubelet.publish, target)
        assert gate.entered.wait(5)
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(target, **changes)
        assert code_of(caught.value) is grpc.StatusCode.ABORTED
        gate.open.set()
        first.result(10)
        kubelet.unpublish(target)


def test_unpublish_cancels_a_publish_and_waits_for_it(place: Place, manager: FakeManager) -> None:
    """When unpublish returns, the publish has ended and nothing of it is left."""
    gate = Gate()
    manager.on_resolve = gate
    target = place.target()
    with running(place, manager) as (plugin, kubelet), ThreadPoolExecutor(1) as pool:
        publish = pool.submit(kubelet.publish, target)
        assert gate.entered.wait(5)
        kubelet.unpublish(target)
        assert gate.cancelled.is_set()
        assert plugin._publisher.operations.count() == 0
        assert place.leftovers() == []
        assert code_of(publish.exception(5)) is grpc.StatusCode.ABORTED  # type: ignore[arg-type]


def test_a_publish_is_cancelled_after_any_step(place: Place) -> None:
    """The table of steps again: an unpublish comes in after each of them, and finds nothing to complain about."""
    steps = every_step(place)
    target = place.target()
    for step in steps:
        reached, go_on = threading.Event(), threading.Event()

        def hold(
            name: str, step: str = step, reached: threading.Event = reached, go_on: threading.Event = go_on
        ) -> None:
            if name == step and not reached.is_set():
                reached.set()
                assert go_on.wait(10)

        with running(place, FakeManager(), checkpoint=hold) as (plugin, kubelet), ThreadPoolExecutor(2) as pool:
            publish = pool.submit(kubelet.publish, target)
            assert reached.wait(5)
            unpublish = pool.submit(kubelet.unpublish, target)
            current = plugin._publisher.operations._by_target[str(target)]
            assert current.cancel.wait(5)
            go_on.set()
            unpublish.result(10)
            assert place.leftovers() == [], step
            error = publish.exception(10)
            assert error is None or code_of(error) is grpc.StatusCode.ABORTED  # type: ignore[arg-type]


def test_publishes_of_different_volumes_do_not_wait_for_each_other(place: Place, manager: FakeManager) -> None:
    """A registry that does not answer holds up its own volume only; Probe answers, too."""
    gate = Gate()

    def slow(reference: str, cancel: threading.Event | None) -> None:
        if "slow" in reference:
            gate(reference, cancel)

    manager.on_resolve = slow
    first, second = place.target(volume="a"), place.target(volume="b")
    with running(place, manager) as (_, kubelet), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(kubelet.publish, first, volume_id="v1", reference="slow.example.com/a/b:v1")
        assert gate.entered.wait(5)
        kubelet.publish(second, volume_id="v2")
        assert kubelet.identity.Probe(pb.ProbeRequest(), timeout=1).ready.value
        gate.open.set()
        waiting.result(10)
        kubelet.unpublish(first, volume_id="v1")
        kubelet.unpublish(second, volume_id="v2")
        assert place.leftovers() == []


def test_stats_come_from_memory_and_tell_the_condition(place: Place, manager: FakeManager) -> None:
    """The mount is served by nobody, and still totals and condition come at once."""
    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target)
        answer = kubelet.stats(target)
        usage = {entry.unit: (entry.total, entry.used, entry.available) for entry in answer.usage}
        assert usage == {pb.VolumeUsage.BYTES: (4096, 4096, 0), pb.VolumeUsage.INODES: (3, 3, 0)}
        assert not answer.volume_condition.abnormal
        assert answer.volume_condition.message
        manager.condition = Health(
            state="degraded",
            reason="registry.example.com does not answer",
            reason_code="registry_unavailable",
            since=1.0,
        )
        condition = kubelet.stats(target).volume_condition
        assert condition.abnormal
        assert condition.message == (
            "degraded since 1970-01-01T00:00:01Z: registry_unavailable: registry.example.com does not answer; "
            "reads wait and go on by themselves"
        )
        for path, volume_id in ((target, "csi-2"), ("some/path", "csi-1"), (place.target(volume="x"), "csi-1")):
            with pytest.raises(grpc.RpcError) as caught:
                kubelet.stats(path, volume_id=volume_id)
            assert code_of(caught.value) is grpc.StatusCode.NOT_FOUND
        kubelet.unpublish(target)


def test_a_foreign_mount_at_the_target_is_left_alone(place: Place, manager: FakeManager) -> None:
    """What somebody else mounted there is neither covered nor unmounted."""
    target = place.target()
    target.mkdir()
    device._mount("none", str(target), "tmpfs", 0, "", shown=target)
    with running(place, manager) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(target)
        assert code_of(caught.value) is grpc.StatusCode.ALREADY_EXISTS
        assert "tmpfs" in details_of(caught.value)
        with pytest.raises(grpc.RpcError, match="tmpfs is mounted there, which is not ours"):
            kubelet.unpublish(target)
        assert MountTable.read().at(target).file_system == "tmpfs"  # type: ignore[union-attr]


def test_a_file_at_the_target_is_left_alone(place: Place, manager: FakeManager) -> None:
    """A clear error, and nothing of a mount is left."""
    target = place.target()
    target.write_text("mine")
    with running(place, manager) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(target)
        assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
        assert "remove what is there" in details_of(caught.value)
        assert target.read_text() == "mine"
        target.unlink()
        assert place.leftovers() == []


def test_a_target_that_holds_something_is_refused_before_anything_is_done(place: Place, manager: FakeManager) -> None:
    """A mount would hide it, and unpublish could never remove the directory."""
    target = place.target()
    target.mkdir()
    (target / "left").write_text("mine")
    with running(place, manager) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(target)
        assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT
        assert "not empty" in details_of(caught.value)
        (target / "left").unlink()
        target.rmdir()
        assert place.leftovers() == []


def test_a_busy_target_is_taken_from_whoever_holds_it(place: Place, manager: FakeManager) -> None:
    """Kubelet asks when the pod is gone: a stray open directory does not keep it from ending."""
    import os

    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target)
        held = os.open(target, os.O_PATH)
        try:
            kubelet.unpublish(target)
            assert place.leftovers() == []
        finally:
            os.close(held)


def test_a_mount_point_that_somebody_unmounted_is_bound_back(place: Place, manager: FakeManager) -> None:
    """Pods that read through their binds keep their file system when the next pod comes."""
    first, second = place.target(volume="a"), place.target(volume="b")
    with running(place, manager) as (_, kubelet):
        kubelet.publish(first, volume_id="v1")
        (identity,) = manager.mounts
        before = MountTable.read().at(first).device  # type: ignore[union-attr]
        device.unmount(place.mounts / identity)
        entry = MountTable.read().at(first)
        manager_status = manager.status
        manager.status = lambda mount_id: _with_targets(manager_status(mount_id), str(first))  # type: ignore[method-assign]
        kubelet.publish(second, volume_id="v2")
        assert entry is not None
        assert MountTable.read().at(first).device == before  # type: ignore[union-attr]
        assert MountTable.read().at(second).device == before  # type: ignore[union-attr]
        kubelet.unpublish(first, volume_id="v1")
        kubelet.unpublish(second, volume_id="v2")
        assert place.leftovers() == []


def _with_targets(status, target: str):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(status, targets=(target,))


LABEL = "system_u:object_r:container_file_t:s0"


def test_volumes_of_one_label_share_a_mount_and_of_two_do_not(place: Place, manager: FakeManager) -> None:
    """A bind has its source's. Kubelet's goes before that of the node's configuration."""
    manager.label = LABEL
    volumes = {
        "a": (),
        "b": (f"context={LABEL}",),
        "c": (f'context="{LABEL}:c1,c2"',),
        "d": (f"context={LABEL}:c1,c2",),
    }
    with running(place, manager) as (_, kubelet):
        for name, flags in volumes.items():
            kubelet.publish(place.target(volume=name), volume_id=name, volume_capability=capability(flags=flags))
        table = MountTable.read()
        a, b, c, d = (table.at(place.target(volume=name)).device for name in volumes)  # type: ignore[union-attr]
        assert a == b
        assert c == d
        assert a != c
        assert len(manager.mounts) == 2
        for name in volumes:
            kubelet.unpublish(place.target(volume=name), volume_id=name)
        assert place.leftovers() == []


def test_a_published_volume_gets_no_other_label(place: Place, manager: FakeManager) -> None:
    """The mount that is there stays what it is; a configuration that has changed is no other request."""
    target, label = place.target(), capability(flags=(f'context="{LABEL}:c1,c2"',))
    plain = place.target(volume="plain")
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target, volume_capability=label)
        kubelet.publish(plain, volume_id="plain")
        before = {path: MountTable.read().at(path) for path in (target, plain)}
        for other in (capability(), capability(flags=(f"context={LABEL}",))):
            with pytest.raises(grpc.RpcError) as refused:
                kubelet.publish(target, volume_capability=other)
            assert code_of(refused.value) == grpc.StatusCode.ALREADY_EXISTS
            assert "mount options" in details_of(refused.value)
        manager.label = LABEL
        kubelet.publish(target, volume_capability=label)
        kubelet.publish(plain, volume_id="plain")
        assert {path: MountTable.read().at(path) for path in (target, plain)} == before
        kubelet.unpublish(target)
        kubelet.unpublish(plain, volume_id="plain")
        assert place.leftovers() == []
