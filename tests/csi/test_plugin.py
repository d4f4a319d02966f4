"""The plugin as a process: its socket, its locks, its end, and what it makes of the state it finds."""

from __future__ import annotations

import dataclasses
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.lanes import Lanes
from csi.operations import Operation
from csi.pb import csi_pb2 as pb
from csi.pb import csi_pb2_grpc as rpc
from csi.pinning import MountingPinner
from csi.plugin import NodePlugin
from csi.provisioner import Provisioner
from csi.publisher import Publisher
from csi.server import Server, socket_path
from csi.slots import MAX_SLOW_CALLS
from csi.volumes import VolumeRecord
from fuse.errors import Conflict, InvalidConfig, Unavailable
from fuse.mounting import device
from fuse.mounting.mountinfo import MountTable
from fuse.mounting.reasons import Reason
from fuse.registry.access import Access
from tests.csi.fakes import FakeAccess, FakeManager
from tests.csi.harness import Kubelet, Place, capability, code_of, create_request, publish_request, running
from tests.support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("form", ["unix://{}", "unix:{}", "{}"])
def test_forms_of_the_endpoint(form: str) -> None:
    """With the scheme in both forms, and without."""
    assert socket_path(form.format("/run/csi/csi.sock")) == Path("/run/csi/csi.sock")


@pytest.mark.parametrize(
    "endpoint", ["", "csi.sock", "tcp://1.2.3.4:5", "unix://relative.sock", "/run/csi", f"/{'x' * 110}.sock"]
)
def test_a_bad_endpoint_is_refused(endpoint: str) -> None:
    """Relative, of another kind, without .sock, or longer than the kernel takes."""
    with pytest.raises(InvalidConfig):
        socket_path(endpoint)


def test_only_root_may_talk_to_the_socket(place: Place, manager: FakeManager) -> None:
    """Mode 0600 in a directory 0700 that the plugin makes; nothing lies beside it but the mounts."""
    with running(place, manager):
        assert place.socket.lstat().st_mode & 0o777 == 0o600
        assert place.socket.parent.stat().st_mode & 0o777 == 0o700
        assert sorted(path.name for path in place.socket.parent.iterdir()) == ["csi.sock", "mounts"]
        for directory in (place.mounts, place.state, place.state / "volumes"):
            assert directory.stat().st_mode & 0o777 == 0o700
    assert not place.socket.exists()


@pytest.mark.parametrize("missing", ["umask", "chmod"])
def test_the_socket_is_nobody_elses_by_two_means(
    place: Place, manager: FakeManager, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """It is made with its mode, so that it never has a wider one; and given it, as a default ACL overrules the first."""
    if missing == "umask":
        monkeypatch.setattr("os.umask", lambda _mask: 0)
    else:
        monkeypatch.setattr(Path, "chmod", lambda *_: None)
    with running(place, manager):
        assert place.socket.lstat().st_mode & 0o777 == 0o600


def test_a_dead_socket_is_replaced(place: Place, manager: FakeManager) -> None:
    """What a killed plugin left does no harm."""
    place.socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.socket))
    with running(place, manager) as (_, kubelet):
        assert kubelet.identity.Probe(pb.ProbeRequest(), timeout=5).ready.value


def test_a_file_at_the_socket_is_left_alone(place: Place, manager: FakeManager) -> None:
    """A clear error, and everything that was started is ended."""
    place.socket.parent.mkdir(parents=True)
    place.socket.write_text("mine")
    with pytest.raises(InvalidConfig, match="not a socket"):
        NodePlugin(place.settings(), manager).start()
    assert place.socket.read_text() == "mine"
    assert manager.closed_with is False


def test_a_second_plugin_is_refused_and_harms_nobody(place: Place, manager: FakeManager) -> None:
    """On the same socket, and on the same directories with another socket: the first serves on."""
    with running(place, manager) as (_, kubelet):
        with pytest.raises(Conflict, match="another node plugin"):
            NodePlugin(place.settings(), FakeManager()).start()
        second = FakeManager()
        settings = dataclasses.replace(place.settings(), endpoint=f"unix://{place.root}/b.sock")
        with pytest.raises(Conflict, match="uses this directory"):
            NodePlugin(settings, second).start()
        assert not second.started
        assert kubelet.identity.Probe(pb.ProbeRequest(), timeout=5).ready.value


def test_a_server_takes_no_living_socket(place: Place, manager: FakeManager) -> None:
    """gRPC would take it without a word; a plugin with other directories must not."""
    with running(place, manager) as (_, kubelet):
        server = Server(place.socket, lambda _: None)
        with pytest.raises(Conflict, match="another node plugin"):
            server.start()
        assert kubelet.identity.Probe(pb.ProbeRequest(), timeout=5).ready.value


def test_mounts_are_kept_when_volumes_are_published_only(place: Place) -> None:
    """With a volume, the manager is closed with keep; without, all goes."""
    first = FakeManager()
    with running(place, first) as (_, kubelet):
        kubelet.publish(place.target())
    assert first.closed_with is True
    second = FakeManager()
    with running(place, second) as (_, kubelet):
        kubelet.unpublish(place.target())
    assert second.closed_with is False
    assert place.leftovers() == []


def test_ending_cancels_what_is_under_way(place: Place, manager: FakeManager) -> None:
    """A publish that waits for a registry does not hold up the end, and leaves nothing; meanwhile the plugin is not ready."""
    entered = threading.Event()

    def wait(_reference: str, cancel: threading.Event | None) -> None:
        assert cancel is not None
        entered.set()
        assert cancel.wait(10)
        ready.append(kubelet.identity.Probe(pb.ProbeRequest(), timeout=5).ready.value)

    manager.on_resolve = wait
    plugin = NodePlugin(place.settings(), manager)
    plugin.start()
    with Kubelet(place.socket) as kubelet:
        ready = [kubelet.identity.Probe(pb.ProbeRequest(), timeout=5).ready.value]
        call = kubelet.node.NodePublishVolume.future(publish_request(place.target()))
        assert entered.wait(5)
        started = time.monotonic()
        plugin.stop()
        assert time.monotonic() - started < 5
        assert code_of(call.exception()) in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
    assert ready == [True, False]
    assert place.leftovers() == []


def test_ending_cancels_volumes_and_claims_at_once(place: Place, manager: FakeManager) -> None:
    """With a controller beside it: kubelet's calls do not wait until the controller's have ended."""
    entered, cancelled = threading.Semaphore(0), threading.Event()

    def resolve(_reference: str, cancel: threading.Event | None) -> None:
        assert cancel is not None
        entered.release()
        assert cancel.wait(10)
        cancelled.set()

    class Pinner:
        def pin(self, reference: str, access: Access, cancel: threading.Event) -> str:
            entered.release()
            assert cancel.wait(10)
            assert cancelled.wait(5)
            return f"{reference}@sha256:{'1' * 64}"

    manager.on_resolve = resolve
    provisioner = Provisioner(pinner=Pinner(), access=FakeAccess(), annotations=lambda _claim: {})
    plugin = NodePlugin(place.settings(), manager, provisioner)
    plugin.start()
    with Kubelet(place.socket) as kubelet:
        calls = (
            kubelet.node.NodePublishVolume.future(publish_request(place.target())),
            kubelet.controller.CreateVolume.future(create_request()),
        )
        assert all(entered.acquire(timeout=5) for _ in calls)
        plugin.stop()
        assert {code_of(call.exception()) for call in calls} == {grpc.StatusCode.ABORTED}
    assert place.leftovers() == []


def test_the_limit_of_volumes_is_what_was_configured(place: Place, manager: FakeManager) -> None:
    """The scheduler is told; without a limit it is 0."""
    settings = dataclasses.replace(place.settings(), max_volumes=17)
    plugin = NodePlugin(settings, manager)
    plugin.start()
    try:
        with Kubelet(place.socket) as kubelet:
            assert kubelet.node.NodeGetInfo(pb.NodeGetInfoRequest()).max_volumes_per_node == 17
    finally:
        plugin.stop()


def test_what_is_not_offered_is_unimplemented(place: Place, manager: FakeManager) -> None:
    """Staging and expansion are not offered; there is no Controller."""
    with running(place, manager) as (_, kubelet):
        for call in (
            lambda: kubelet.node.NodeStageVolume(pb.NodeStageVolumeRequest(), timeout=5),
            lambda: kubelet.node.NodeExpandVolume(pb.NodeExpandVolumeRequest(), timeout=5),
            lambda: rpc.ControllerStub(kubelet._channel).CreateVolume(pb.CreateVolumeRequest(), timeout=5),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert code_of(caught.value) is grpc.StatusCode.UNIMPLEMENTED


def test_volumes_whose_mounts_died_are_mounted_again(place: Place) -> None:
    """Plugin and keeper died: dead mounts are replaced, and until then the condition says so. The registry is away first."""
    target = place.target()
    with running(place, FakeManager()) as (_, kubelet):
        kubelet.publish(target)
    before = MountTable.read().at(target)
    manager = FakeManager()
    away = threading.Event()
    away.set()

    def resolve(_reference: str, _cancel: threading.Event | None) -> None:
        if away.is_set():
            raise Unavailable("no answer")

    manager.on_resolve = resolve
    with running(place, manager) as (plugin, kubelet):
        until(lambda: "no answer" in kubelet.stats(target).volume_condition.message, "it was tried")
        condition = kubelet.stats(target).volume_condition
        assert condition.abnormal
        assert re.match(
            r"broken since \S+Z: registry_unavailable: cannot be mounted again: no answer.*; reads fail until",
            condition.message,
        )
        away.clear()
        plugin._mender._due = dict.fromkeys(plugin._mender._due, (0.0, 1.0))
        plugin._mender._wake.set()
        until(lambda: not kubelet.stats(target).volume_condition.abnormal, "it is healed")
        after = MountTable.read().at(target)
        assert before is not None
        assert after is not None
        assert before.device != after.device
        assert manager.resolved[-1][0].startswith("registry.example.com/models/tiny:v1@sha256:")
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_a_registry_that_hangs_keeps_no_other_volume_dead(place: Place) -> None:
    """However many volumes wait for it."""
    places = [place.target(volume=f"h{number}") for number in range(20)]
    target = place.target()
    with running(place, FakeManager()) as (plugin, kubelet):
        for number, hanging in enumerate(places):
            kubelet.publish(hanging, volume_id=f"h{number}", reference="hangs.example.com/models/tiny:v1")
        kubelet.publish(target)
        (record,) = [record for record in plugin._records.all() if record.volume_id == "csi-1"]
    manager = FakeManager()

    def resolve(reference: str, cancel: threading.Event | None) -> None:
        assert cancel is not None
        if reference.startswith("hangs"):
            cancel.wait(30)

    manager.on_resolve = resolve
    with running(place, manager) as (plugin, kubelet):
        until(lambda: not kubelet.stats(target).volume_condition.abnormal, "the other one is mounted again")
        assert plugin._publisher.is_served(record)
        assert kubelet.stats(places[0], volume_id="h0").volume_condition.abnormal
        for number, hanging in enumerate(places):
            kubelet.unpublish(hanging, volume_id=f"h{number}")
        kubelet.unpublish(target)
        assert place.leftovers() == []
    assert not plugin._mender._lanes.offer("late", "", place.clear)


def test_a_repeated_publish_comes_before_a_mending_under_way(place: Place) -> None:
    """Kubelet is not told to come back: what it asks for is done in place of what waits for a registry."""
    target = place.target()
    with running(place, FakeManager()) as (_, kubelet):
        kubelet.publish(target)
    manager = FakeManager()
    asked = threading.Event()

    def hang_at_first(_reference: str, cancel: threading.Event | None) -> None:
        if not asked.is_set():
            asked.set()
            assert cancel is not None
            assert cancel.wait(10)

    manager.on_resolve = hang_at_first
    with running(place, manager) as (plugin, kubelet):
        assert asked.wait(10)
        kubelet.publish(target)
        (record,) = plugin._records.all()
        assert plugin._publisher.is_served(record)
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_what_dies_while_it_is_mended_is_mended_again(place: Place, manager: FakeManager) -> None:
    """The mount that was just made is taken away before anybody has seen it."""
    target = place.target()
    with running(place, manager) as (plugin, kubelet):
        kubelet.publish(target)
        (record,) = plugin._records.all()
        remounted: list[VolumeRecord] = []
        offered: list[bool] = []

        def remount(operation: Operation[None], current: VolumeRecord) -> None:
            Publisher.remount(plugin._publisher, operation, current)
            remounted.append(current)
            if len(remounted) == 1:
                device.unmount(target, lazy=True)
                plugin._mender.add(current, Reason.UNMOUNTED, "it was unmounted")
                until(lambda: False in offered, "it is thought of while this is under way")

        def offer(*piece: Any) -> bool:
            offered.append(Lanes.offer(plugin._mender._lanes, *piece))
            return offered[-1]

        plugin._mender._lanes.offer = offer  # type: ignore[method-assign]
        plugin._publisher.remount = remount  # type: ignore[method-assign]
        device.unmount(target, lazy=True)
        plugin._mender.add(record, Reason.UNMOUNTED, "it was unmounted")
        until(lambda: not plugin._mender._due, "it is mended")
        assert plugin._publisher.is_served(record)
        assert 2 == len(remounted)
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_a_start_that_fails_waits_for_no_registry(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has begun to mend by then is given up."""
    with running(place, FakeManager()) as (_, kubelet):
        kubelet.publish(place.target())
    manager = FakeManager()
    asked, given_up = threading.Event(), []

    def hang(_reference: str, cancel: threading.Event | None) -> None:
        asked.set()
        assert cancel is not None
        given_up.append(cancel.wait(10))

    def fail(_server: Server) -> None:
        assert asked.wait(10)
        raise Conflict("another node plugin serves this socket")

    manager.on_resolve = hang
    monkeypatch.setattr(Server, "start", fail)
    with pytest.raises(Conflict):
        NodePlugin(place.settings(), manager).start()
    assert [True] == given_up
    assert manager.closed_with


def test_a_dead_volume_is_unpublished_without_the_registry(place: Place) -> None:
    """Nothing of it needs anybody but the kernel."""
    target = place.target()
    with running(place, FakeManager()) as (_, kubelet):
        kubelet.publish(target)
    manager = FakeManager()

    def away(_reference: str, _cancel: threading.Event | None) -> None:
        raise Unavailable("no answer")

    manager.on_resolve = away
    with running(place, manager) as (_, kubelet):
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_a_mount_that_dies_is_mounted_again(place: Place, manager: FakeManager) -> None:
    """The manager says that somebody ended it."""
    target = place.target()
    with running(place, manager) as (_, kubelet):
        kubelet.publish(target)
        ((name, (_, mountpoint)),) = manager.mounts.items()
        status = manager.status(name)
        device.unmount(target, lazy=True)
        manager.unmount(name, lazy=True)
        assert manager.on_gone is not None
        manager.on_gone(status)
        until(lambda: MountTable.read().at(target) and MountTable.read().at(mountpoint), "it is there again")
        until(lambda: not kubelet.stats(target).volume_condition.abnormal, "it is healed")
        kubelet.unpublish(target)
        assert place.leftovers() == []


def test_a_volume_is_mounted_again_with_the_label_that_it_had(place: Place) -> None:
    """Its record has it, be it of the request or of a configuration that has another one by now."""
    label = "system_u:object_r:container_file_t:s0"
    first, second = place.target(volume="a"), place.target(volume="b")
    before = FakeManager()
    before.label = label
    with running(place, before) as (plugin, kubelet):
        kubelet.publish(first, volume_id="v1")
        kubelet.publish(second, volume_id="v2", volume_capability=capability(flags=(f"context={label}:c1,c2",)))
        identities = {record.identity for record in plugin._records.all()}
    after = FakeManager()
    with running(place, after) as (plugin, kubelet):
        for target, name in ((first, "v1"), (second, "v2")):
            until(lambda here=target, named=name: not _abnormal(kubelet, here, named), f"{name} is healed")  # type: ignore[misc]
        assert set(after.mounts) == identities
        assert {record.label for record in plugin._records.all()} == {label, f"{label}:c1,c2"}
        kubelet.unpublish(first, volume_id="v1")
        kubelet.unpublish(second, volume_id="v2")
        assert place.leftovers() == []


def _abnormal(kubelet: Kubelet, target: Path, volume_id: str) -> bool:
    return bool(kubelet.stats(target, volume_id=volume_id).volume_condition.abnormal)


def test_orphans_are_removed_at_the_start(place: Place) -> None:
    """Binds, mounts and mount points that no record knows go; what is not ours stays."""
    first, second = place.target(volume="a"), place.target(volume="b")
    with running(place, FakeManager()) as (plugin, kubelet):
        kubelet.publish(first, volume_id="v1")
        kubelet.publish(second, volume_id="v2", attributes={"exclude-model-weights": "true"})
        (orphan,) = (record for record in plugin._records.all() if record.volume_id == "v1")
    (place.state / "volumes" / f"{orphan.name}.json").unlink()
    (place.mounts / ("a" * 24)).mkdir()
    (place.mounts / "lost+found").mkdir()
    with running(place, FakeManager()) as (_, kubelet):
        assert MountTable.read().at(first) is None
        assert not first.parent.joinpath("mount").exists()
        assert not (place.mounts / orphan.identity).exists()
        assert not (place.mounts / ("a" * 24)).exists()
        assert (place.mounts / "lost+found").is_dir()
        kubelet.unpublish(second, volume_id="v2")
    (place.mounts / "lost+found").rmdir()
    assert place.leftovers() == []


def test_with_a_damaged_record_nothing_is_an_orphan(place: Place) -> None:
    """A pod may be reading what the damaged record was for."""
    target = place.target()
    with running(place, FakeManager()) as (_, kubelet):
        kubelet.publish(target)
    (path,) = (place.state / "volumes").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:20])
    with running(place, FakeManager()):
        assert MountTable.read().at(target) is not None
    path.write_bytes(content)
    with running(place, FakeManager()) as (_, kubelet):
        kubelet.unpublish(target)
    assert place.leftovers() == []


def test_only_so_many_publishes_at_once(place: Place, manager: FakeManager) -> None:
    """With the registry away, the next publish is told to come back, and Probe is answered."""
    release, count = threading.Event(), threading.Semaphore(0)

    def wait(_reference: str, cancel: threading.Event | None) -> None:
        count.release()
        assert release.wait(20)

    manager.on_resolve = wait
    with running(place, manager) as (_, kubelet):
        calls = [
            kubelet.node.NodePublishVolume.future(
                publish_request(place.target(volume=f"v{number}"), volume_id=f"v{number}"), timeout=30
            )
            for number in range(MAX_SLOW_CALLS)
        ]
        for _ in calls:
            assert count.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(place.target(volume="one-more"), volume_id="one-more")
        assert code_of(caught.value) is grpc.StatusCode.ABORTED
        assert kubelet.identity.Probe(pb.ProbeRequest(), timeout=1).ready.value
        release.set()
        for number, call in enumerate(calls):
            call.result()
            kubelet.unpublish(place.target(volume=f"v{number}"), volume_id=f"v{number}")
        assert place.leftovers() == []


def test_claims_and_volumes_share_the_threads_of_one_server(place: Place, manager: FakeManager) -> None:
    """Publishes that wait for a registry and creations that do leave room for a probe together."""
    release, count = threading.Event(), threading.Semaphore(0)

    def wait(_reference: str, cancel: threading.Event | None) -> None:
        count.release()
        assert release.wait(20)

    manager.on_resolve = wait
    provisioner = Provisioner(pinner=MountingPinner(manager), access=FakeAccess(), annotations=lambda _claim: {})
    with running(place, manager, provisioner) as (_, kubelet):
        half = range(MAX_SLOW_CALLS // 2)
        calls = [
            kubelet.node.NodePublishVolume.future(
                publish_request(place.target(volume=f"v{number}"), volume_id=f"v{number}"), timeout=30
            )
            for number in half
        ] + [kubelet.controller.CreateVolume.future(create_request(f"pvc-{number}"), timeout=30) for number in half]
        for _ in calls:
            assert count.acquire(timeout=10)
        refused = kubelet.controller.CreateVolume.future(create_request("one-more"), timeout=10)
        assert code_of(refused.exception()) is grpc.StatusCode.ABORTED
        assert kubelet.identity.Probe(pb.ProbeRequest(), timeout=1).ready.value
        release.set()
        for call in calls:
            call.result()
        for number in half:
            kubelet.unpublish(place.target(volume=f"v{number}"), volume_id=f"v{number}")
        assert place.leftovers() == []
