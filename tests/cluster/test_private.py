"""A model that not everybody may pull: pods with the right credentials read it, others are told what they lack."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.cluster import settings
from tests.cluster.conftest import Cluster, Started
from tests.cluster.kubernetes import Object

pytestmark = pytest.mark.timeout(1800)

WRONG = "canary-4f9x2m-wrong"
SECRET = "rotated"
STRANGER = "stranger"


@pytest.fixture(autouse=True)
def _private(cluster: Cluster) -> None:
    if not cluster.settings.docker_config:
        pytest.skip(f"{settings.PREFIX}DOCKER_CONFIG is not set: the model is public")


@pytest.fixture(scope="module")
def accounts(cluster: Cluster) -> Iterator[str]:
    """The account that may pull, whose name this is, and one that may not."""
    if not cluster.settings.account:
        pytest.skip(f"{settings.PREFIX}ACCOUNT is not set: no credential provider is on the nodes")
    named = cluster.settings.account["metadata"]
    theirs = {**cluster.settings.account, "metadata": {**named, "namespace": settings.NAMESPACE}}
    stranger = {**theirs, "metadata": {**theirs["metadata"], "name": STRANGER}}
    cluster.kubernetes.apply([theirs, stranger])
    yield str(named["name"])
    cluster.kubernetes.delete([theirs, stranger])


def test_a_pod_without_the_secret_is_refused(started: Started, cluster: Cluster) -> None:
    """Whatever the node has of the model already, a pod that names no secret waits, and is told to name one."""
    pod = started(replace(cluster.workloads, secret="").inline("nobody"))
    event = cluster.kubernetes.told(pod, "FailedMount")
    assert _refused(event)
    assert "nodePublishSecretRef" in event
    assert cluster.kubernetes.told(pod, "ModelRefused")


def test_a_secret_that_is_corrected_lets_the_pod_in(started: Started, cluster: Cluster) -> None:
    """A wrong password is refused, without a word of it; when the Secret has the right one, kubelet's next try succeeds."""
    right = json.loads(cluster.settings.docker_config)
    wrong = {"auths": {host: {"auth": _encoded(f"nobody:{WRONG}")} for host in right["auths"]}}
    cluster.kubernetes.apply([_secret(wrong)])
    pod = started(replace(cluster.workloads, secret=SECRET).inline("corrected"))
    assert _refused(cluster.kubernetes.told(pod, "FailedMount"))
    cluster.kubernetes.apply([_secret(right)])
    phase = cluster.kubernetes.until_phase(pod, "Succeeded", "Failed")
    assert (phase, sorted(cluster.kubernetes.logs(pod).splitlines())) == ("Succeeded", cluster.sums)
    _nothing_told(cluster, pod)


def test_a_pods_own_account_lets_it_in(accounts: str, started: Started, cluster: Cluster) -> None:
    """Without any secret: kubelet hands over a token of the pod, and the node's credential provider takes it to the registry."""
    pod = started(replace(cluster.workloads, secret="").inline("account", account=accounts))
    phase = cluster.kubernetes.until_phase(pod, "Succeeded", "Failed")
    assert (phase, sorted(cluster.kubernetes.logs(pod).splitlines())) == ("Succeeded", cluster.sums)
    _nothing_told(cluster, pod)


def test_another_account_is_refused_what_the_node_has(accounts: str, started: Started, cluster: Cluster) -> None:
    """All bytes are on the node, by another account's right: a pod of an account that may not pull gets nothing of them."""
    first = started(replace(cluster.workloads, secret="").inline("before", account=accounts))
    assert cluster.kubernetes.until_phase(first, "Succeeded", "Failed") == "Succeeded"
    node = cluster.node_of(first)
    pod = started(replace(cluster.workloads, secret="").inline("stranger", account=STRANGER, node=node))
    assert _refused(cluster.kubernetes.told(pod, "FailedMount"))
    _nothing_told(cluster, pod)


def _refused(event: str) -> bool:
    return any(f"code = {code} " in event for code in ("PermissionDenied", "Unauthenticated"))


def _nothing_told(cluster: Cluster, pod: str) -> None:
    """No secret and no token is in what the pod was told, nor in what the driver wrote."""
    told = "\n".join([*cluster.kubernetes.events(pod), *cluster.driver.logs().values()])
    auths = json.loads(cluster.settings.docker_config)["auths"].values()
    secrets = {WRONG, _encoded(f"nobody:{WRONG}"), *(secret for auth in auths for secret in _secrets(auth))}
    # Every JWT begins so.
    assert not [secret for secret in [*secrets, "eyJhbGciO"] if secret in told]


def _secrets(auth: dict[str, Any]) -> list[str]:
    found = [auth[name] for name in ("auth", "password", "identitytoken", "registrytoken") if auth.get(name)]
    if auth.get("auth"):
        found.append(base64.b64decode(auth["auth"]).decode().partition(":")[2])
    return found


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _secret(content: dict[str, Any]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": settings.NAMESPACE},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": _encoded(json.dumps(content))},
    }
