"""Whose credentials a volume is let in with, and that a mount outlives them: over the socket, on mounts that nobody serves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from csi import given
from csi.plugin import NodePlugin
from fuse.credentials.given import ServiceAccount
from fuse.errors import Cancelled, InvalidRequest, Unavailable
from fuse.mounting.reasons import Reason
from fuse.mounting.status import Health
from fuse.registry.access import Access
from tests.csi.fakes import PASSWORD, PRIVATE, FakeAccess, FakeManager
from tests.csi.harness import Kubelet, Place, code_of, details_of, running
from tests.support.waiting import until

pytestmark = pytest.mark.kernel

SECRET = {"username": "bob", "password": PASSWORD}
WRONG = {"username": "bob", "password": "wrong"}


def tokens(text: str) -> str:
    return json.dumps({"registry": {"token": text, "expirationTimestamp": "2030-01-02T03:04:05Z"}})


def context(text: str) -> dict[str, str]:
    return {given.TOKENS: tokens(text), given.ACCOUNT: "reader"}


@contextmanager
def node(place: Place, manager: FakeManager, access: FakeAccess) -> Iterator[tuple[NodePlugin, Kubelet]]:
    with running(place, manager, access=access, renewal_look_s=0.02) as (plugin, kubelet):
        yield plugin, kubelet


def in_force(manager: FakeManager) -> list[str | None]:
    """The password of every grant."""
    grants: list[Access] = [access for of_mount in manager.grants.values() for access in of_mount.values()]
    return [access.endpoints[0].credential and access.endpoints[0].credential.password for access in grants]


def test_tokens_are_read_from_the_secrets_before_the_context() -> None:
    """Where kubelet puts them depends on its version; what else it says of the pod is in the context."""
    said = {**context("of-context"), given.NAMESPACE: "team"}
    own, rest = given.apart({"username": "u", "password": "p", given.TOKENS: tokens("of-secrets")}, said)
    found = given.parse(own, rest)

    assert ("of-secrets", ServiceAccount("team", "reader")) == (found.tokens["registry"].text, found.account)
    assert {"username": "u", "password": "p"} == found.secrets
    assert "of-context" == given.parse(*given.apart({}, said)).tokens["registry"].text
    assert given.parse({}, {}).account is None
    with pytest.raises(InvalidRequest, match=r"serviceAccount\.tokens: is not what kubelet writes"):
        given.parse(*given.apart({given.TOKENS: "hunter2"}, {}))


@pytest.mark.parametrize("where", ["secrets", "context"])
def test_a_pods_token_lets_it_in_and_a_newer_one_takes_its_place(
    place: Place, manager: FakeManager, where: str
) -> None:
    """At the same mount, which nobody touches; the same token again costs nothing."""
    target = place.target()

    def publish(kubelet: Kubelet, text: str) -> None:
        if where == "secrets":
            secrets, attributes = {given.TOKENS: tokens(text)}, {given.ACCOUNT: "reader"}
        else:
            secrets, attributes = {}, context(text)
        kubelet.publish(target, reference=PRIVATE, secrets=secrets, attributes=attributes)

    access = FakeAccess()
    manager.passwords = {"token-1", "token-2"}
    with node(place, manager, access) as (plugin, kubelet):
        publish(kubelet, "token-1")
        mounted = dict(manager.mounts)
        publish(kubelet, "token-1")
        assert 1 == len(manager.resolved)
        publish(kubelet, "token-2")
        assert (["token-2"], mounted) == (in_force(manager), manager.mounts)
        (record,) = plugin._records.all()
        assert "pod-identity" == record.rung
        content = [path.read_bytes() for path in (place.state / "volumes").iterdir()]
        assert not any(b"token-" in text for text in content)
        kubelet.unpublish(target)


@pytest.mark.parametrize(
    ("secrets", "attributes"),
    [
        ({"nonsense": "x"}, {}),
        ({".dockerconfigjson": "x", "nonsense": "y"}, {}),
        (WRONG, {}),
        ({given.TOKENS: "x"}, {}),
        ({}, {given.TOKENS: "x"}),
        ({}, {}),
    ],
)
def test_a_repeated_publish_harms_no_running_volume(
    place: Place, manager: FakeManager, secrets: dict[str, str], attributes: dict[str, str]
) -> None:
    """Whatever became of its secret: kubelet is told that all is well, and the mount has what it had."""
    target = place.target()
    with node(place, manager, FakeAccess()) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE, secrets=SECRET)
        kubelet.publish(target, reference=PRIVATE, secrets=secrets, attributes=attributes)
        assert [PASSWORD] == in_force(manager)
        kubelet.unpublish(target)


def test_a_first_publish_with_such_a_secret_is_refused(place: Place, manager: FakeManager) -> None:
    """Before anybody is asked."""
    with node(place, manager, FakeAccess()) as (_, kubelet):
        for secrets in ({"nonsense": "x"}, {given.TOKENS: "hunter2"}):
            with pytest.raises(grpc.RpcError) as caught:
                kubelet.publish(place.target(), reference=PRIVATE, secrets=secrets)
            assert grpc.StatusCode.INVALID_ARGUMENT is code_of(caught.value)
            assert "hunter2" not in details_of(caught.value)
        assert [] == manager.resolved
        assert [] == place.leftovers()


def test_credentials_that_end_are_looked_up_again(place: Place, manager: FakeManager) -> None:
    """With what the last request brought, without kubelet, as often as they end; the mount is given new ones only."""
    access = FakeAccess()
    access.lifetime_s = 0.0
    target = place.target()
    with node(place, manager, access) as (plugin, kubelet):
        kubelet.publish(target, reference=PRIVATE, secrets=SECRET)
        until(lambda: len(access.asked) > 1, "they are looked up again")
        until(lambda: not plugin._publisher.operations.count(), "the look is over")
        assert 1 == len(manager.resolved)  # they were the same
        kubelet.unpublish(target)
        assert [] == place.leftovers()


def test_a_provider_that_hangs_keeps_no_other_registry_waiting(place: Place, manager: FakeManager) -> None:
    """However many volumes are of the one that hangs; and the plugin ends without waiting for the provider's time limit."""
    access = FakeAccess()
    access.ambient = "old"
    manager.passwords = {"old", "new"}
    hung, cancelled = [], []

    def hang(reference: str, cancel: threading.Event | None) -> None:
        if access.written and reference.startswith("hangs"):
            assert cancel is not None
            hung.append(reference)
            assert cancel.wait(30)
            cancelled.append(reference)
            raise Cancelled("given up while credentials were being fetched")

    access.on_admit = hang
    with node(place, manager, access) as (plugin, kubelet):
        for number in range(20):
            kubelet.publish(
                place.target(volume=f"h{number}"), volume_id=f"h{number}", reference="hangs.example.com/private/a:v1"
            )
        target = place.target()
        kubelet.publish(target, reference=PRIVATE)
        access.ambient, access.written = "new", 1
        until(lambda: "new" in in_force(manager), "the other one has the new ones")
        assert ["new", *["old"] * 20] == sorted(map(str, in_force(manager)))
        kubelet.unpublish(place.target(volume="h0"), volume_id="h0")  # nor does it wait for what is under way
    assert cancelled
    assert sorted(cancelled) == sorted(hung)
    assert not any(thread.name == "renewal" for thread in threading.enumerate())
    assert not plugin._renewals._lanes.offer("late", "", hung.clear)


def test_a_repeated_publish_comes_before_a_renewal_under_way(place: Place, manager: FakeManager) -> None:
    """Kubelet is not told to come back because a provider hangs."""
    access = FakeAccess()
    access.ambient = "old"
    manager.passwords = {"old", "new"}
    target = place.target()
    asked = threading.Event()

    def hang_at_first(_reference: str, cancel: threading.Event | None) -> None:
        if access.written and not asked.is_set():
            asked.set()
            assert cancel is not None
            assert cancel.wait(10)
            raise Cancelled("given up while credentials were being fetched")

    access.on_admit = hang_at_first
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE)
        access.ambient, access.written = "new", 1
        assert asked.wait(10)
        kubelet.publish(target, reference=PRIVATE)
        assert ["new"] == in_force(manager)
        kubelet.unpublish(target)


def test_what_the_administrator_changes_counts_for_what_runs(place: Place, manager: FakeManager) -> None:
    """For volumes that came in by the rung that changed; a registry that does not answer is asked again."""
    access = FakeAccess()
    access.ambient = "old"
    manager.passwords = {"old", "new"}
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(place.target(volume="a"), volume_id="v1", reference=PRIVATE)
        kubelet.publish(place.target(volume="b"), volume_id="v2", reference=PRIVATE, secrets=SECRET)
        asked = len(access.asked)
        access.ambient, access.written = "new", 1
        until(lambda: sorted(map(str, in_force(manager))) == sorted(["new", PASSWORD]), "the new one is in force")
        assert asked + 1 == len(access.asked)
        for volume, volume_id in (("a", "v1"), ("b", "v2")):
            kubelet.unpublish(place.target(volume=volume), volume_id=volume_id)


def test_a_change_counts_for_the_credentials_of_a_mirror_alone(place: Place, manager: FakeManager) -> None:
    """The registry asks for none, and a mirror for the driver's: those are looked after as well."""
    access = FakeAccess()
    access.of_mirror = "driver-secret"
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(place.target(), reference=PRIVATE, secrets=SECRET)
        access.written = 1
        until(lambda: [False, False] == access.asked, "it is looked up again")
        kubelet.unpublish(place.target())


def test_a_look_that_fails_is_not_the_last(place: Place, manager: FakeManager) -> None:
    """The directory of the driver's secret may be on a disk that fails for a moment."""
    access = FakeAccess()
    access.ambient, access.failing_looks = "old", (2, 3)
    manager.passwords = {"old", "new"}
    target = place.target()
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE)
        until(lambda: access.looks >= 3, "the looks that fail are over")
        access.ambient, access.written = "new", 1
        until(lambda: in_force(manager) == ["new"], "the new one is in force")
        kubelet.unpublish(target)


def test_a_restarted_plugin_looks_again_at_what_it_can(
    place: Place, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the driver's and the node's credentials need no request; soon, and without being told of a change."""
    monkeypatch.setattr("csi.renewal._AFTER_START_S", 0.05)
    access = FakeAccess()
    access.ambient = "old"
    manager.passwords = {"old", "new"}
    target = place.target()
    with node(place, manager, access) as (plugin, kubelet):
        kubelet.publish(target, reference=PRIVATE)
        plugin._manager.close = lambda *, keep: None  # type: ignore[method-assign, misc]
    access.ambient = "new"
    with node(place, manager, access) as (_, kubelet):
        until(lambda: in_force(manager) == ["new"], "the new one is in force")
        kubelet.unpublish(target)
    FakeManager.close(manager, keep=False)


def test_no_look_falls_back_to_weaker_credentials(place: Place, manager: FakeManager) -> None:
    """Who came in by a token does not go on by the node's credentials when the token has ended."""
    access = FakeAccess()
    manager.passwords = {"token-1", "of-node"}
    target = place.target()
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE, attributes=context("token-1"))
        access.ambient = "of-node"
        kubelet.publish(target, reference=PRIVATE)
        assert ["token-1"] == in_force(manager)
        kubelet.unpublish(target)


def test_a_fresh_look_falls_back_to_no_weaker_credentials(place: Place, manager: FakeManager) -> None:
    """Neither does one that is made since the registry did not take what was remembered, and the provider fails by now."""
    access = FakeAccess()
    manager.passwords = {"token-1", "of-node"}
    target = place.target()
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE, attributes=context("token-1"))
        access.remembered, access.fresh_password, access.fresh_rung = True, "of-node", "node-identity"
        kubelet.publish(target, reference=PRIVATE, attributes=context("token-2"))
        assert [False, False, True] == access.asked
        assert ["token-1"] == in_force(manager)
        kubelet.unpublish(target)


def test_who_was_refused_does_not_come_in_by_weaker_credentials(place: Place, manager: FakeManager) -> None:
    """The provider whose remembered answer the registry refuses fails when it is asked afresh: that is no way to the node's."""
    access = FakeAccess()
    access.remembered, access.fresh_password, access.fresh_rung = True, "of-node", "node-identity"
    manager.passwords = {"of-node"}
    with node(place, manager, access) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(place.target(), reference=PRIVATE, attributes=context("token-1"))
        assert grpc.StatusCode.UNAUTHENTICATED is code_of(caught.value)
        assert "for ServiceAccount" in details_of(caught.value)
        assert [False, True] == access.asked
        assert [] == place.leftovers()


def test_remembered_credentials_are_refused_only_when_fresh_ones_are(place: Place, manager: FakeManager) -> None:
    """A right that was given a moment ago counts, whatever is remembered; what stays refused is asked about once more only."""
    access = FakeAccess()
    access.remembered = True
    with node(place, manager, access) as (_, kubelet):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.publish(place.target(), reference=PRIVATE, secrets=WRONG)
        assert grpc.StatusCode.UNAUTHENTICATED is code_of(caught.value)
        assert "nodePublishSecretRef" in details_of(caught.value)
        assert [False, True] == access.asked

        access.fresh_password = PASSWORD
        kubelet.publish(place.target(), reference=PRIVATE, secrets=WRONG)
        assert [PASSWORD] == in_force(manager)
        kubelet.unpublish(place.target())


def test_a_look_that_the_registry_does_not_answer_is_repeated(
    place: Place, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause; until then the mount has what it had."""
    monkeypatch.setattr("csi.admissions._FIRST_PAUSE_S", 0.02)
    access = FakeAccess()
    access.ambient = "old"
    manager.passwords = {"old", "new"}
    target = place.target()
    failed: list[str] = []

    def away(reference: str, _cancel: object) -> None:
        if len(failed) < 2:
            failed.append(reference)
            raise Unavailable("the registry does not answer")

    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE)
        manager.on_resolve = away
        access.ambient, access.written = "new", 1
        until(lambda: in_force(manager) == ["new"], "the new one is in force")
        assert 2 == len(failed)
        kubelet.unpublish(target)


def test_what_the_registry_stops_to_take_is_looked_up_afresh(place: Place, manager: FakeManager) -> None:
    """Credentials that have not ended may be revoked: the condition of the mount tells, and nobody waits for their end."""
    access = FakeAccess()
    access.ambient = "old"
    manager.passwords = {"old", "new"}
    target = place.target()
    with node(place, manager, access) as (_, kubelet):
        kubelet.publish(target, reference=PRIVATE)
        access.fresh_password = "new"
        manager.condition = Health(state="broken", reason="401", reason_code=Reason.REGISTRY_REFUSED)
        until(lambda: in_force(manager) == ["new"], "the new one is in force")
        looks = access.looks
        until(lambda: access.looks > looks + 2, "it is looked again")
        assert [False, True] == access.asked  # and not at every look
        manager.condition = Health()
        kubelet.unpublish(target)


def test_a_look_that_comes_too_late_brings_nothing_back(place: Place, manager: FakeManager) -> None:
    """The volume was unpublished meanwhile."""
    access = FakeAccess()
    with node(place, manager, access) as (plugin, kubelet):
        kubelet.publish(place.target(), reference=PRIVATE, secrets=SECRET)
        (record,) = plugin._records.all()
        kubelet.unpublish(place.target())
        assert not plugin._publisher.renew(record, fresh=True)
        assert 1 == len(access.asked)
        assert [] == place.leftovers()


def test_what_was_brought_is_forgotten_with_the_volume(place: Place, manager: FakeManager, tmp_path: Path) -> None:
    """Nothing of it stays in memory for nobody."""
    with node(place, manager, FakeAccess()) as (plugin, kubelet):
        kubelet.publish(place.target(), reference=PRIVATE, secrets=SECRET)
        admissions = plugin._publisher.admissions
        (name,) = admissions._held
        assert SECRET == admissions.given(name).secrets
        assert PASSWORD not in repr(admissions._held)
        kubelet.unpublish(place.target())
        assert {} == admissions._held
