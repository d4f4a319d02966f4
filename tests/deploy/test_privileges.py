"""What the installation may do, on nodes and in the cluster: this and no more. deploy/README.md says why, a row each."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.deploy.chart import CASES, ROOT, Helm, Objects

pytestmark = pytest.mark.timeout(600)

README = ROOT / "deploy" / "README.md"


def test_only_the_plugin_is_privileged(helm: Helm) -> None:
    """Every other container has no capability (cleanup: two), cannot gain one, and cannot write to its image."""
    for case in CASES:
        objects = helm.objects(case)
        for (pod, name), container in objects.containers().items():
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, (pod, name)
            assert objects.pods()[pod]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            if (pod, name) == ("weightless-node", "weightless"):
                assert context["privileged"] is True
                continue
            assert context["allowPrivilegeEscalation"] is False, (pod, name)
            assert "privileged" not in context
            allowed = ["DAC_OVERRIDE", "SYS_PTRACE"] if name == "clean" else None
            assert (context["capabilities"]["drop"], context["capabilities"].get("add")) == (["ALL"], allowed)


def test_only_what_mounts_and_holds_is_root(default: Objects) -> None:
    """The controller is nobody in particular; of the nodes' directories it sees none."""
    pod = default.pods()["weightless-controller"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert [each for each in pod["volumes"] if "hostPath" in each] == []
    assert not any(pod.get(name) for name in ("hostPID", "hostNetwork", "hostIPC"))


def test_bidirectional_mounts_are_the_two_that_must_be(default: Objects) -> None:
    """Where mounts are made, and where kubelet wants them; nothing else propagates."""
    propagated = [
        (name, mount["mountPath"])
        for (_, name), container in default.containers().items()
        for mount in container["volumeMounts"]
        if "mountPropagation" in mount
    ]

    assert propagated == [
        ("weightless", "/var/lib/kubelet/plugins/csi.weightless.dev"),
        ("weightless", "/var/lib/kubelet/pods"),
    ]


def test_the_plugin_sees_paths_as_the_node_does(full: Objects) -> None:
    """Mounts and sockets are named by path between kubelet, keeper and plugin."""
    for pod, container in (("weightless-node", "weightless"), ("weightless-keeper", "keeper")):
        volumes = {each["name"]: each for each in full.pods()[pod]["volumes"]}
        for mount in full.containers()[pod, container]["volumeMounts"]:
            host = volumes[mount["name"]].get("hostPath")
            if host and not mount.get("readOnly"):
                assert mount["mountPath"] == host["path"]


def test_every_directory_of_the_node_is_justified(helm: Helm) -> None:
    """deploy/README.md has a row for each host path, and none that is not asked for."""
    section = README.read_text().partition("## What of the node they see")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(/[^`]+)`", section, re.MULTILINE))
    found = {
        volume["hostPath"]["path"]
        for settings in (
            (),
            ("registries.nodeCertsDir=/etc/containerd/certs.d",),
            (
                "credentials.providers.config=/etc/kubernetes/credential-providers.yaml",
                "credentials.providers.binDir=/usr/libexec/kubernetes/credential-providers",
            ),
        )
        for pod in helm.objects("default", *settings).pods().values()
        for volume in pod["volumes"]
        if "hostPath" in volume
    }

    assert documented == found


def test_the_rights_of_the_controller_are_the_least(default: Objects) -> None:
    """What external-provisioner needs of a driver without topology, snapshots, attachments and secrets; one Lease."""
    assert _rules(default.one("ClusterRole", "weightless-controller")) == {
        ("", "persistentvolumes", ""): "create delete get list patch watch",
        ("", "persistentvolumeclaims", ""): "get list update watch",
        ("storage.k8s.io", "storageclasses", ""): "get list watch",
        ("", "events", ""): "create patch",
    }
    assert _rules(default.one("Role", "weightless-controller")) == {
        ("coordination.k8s.io", "leases", ""): "create",
        ("coordination.k8s.io", "leases", "csi-weightless-dev"): "get update",
    }


def test_the_rights_of_the_plugin_are_what_was_turned_on(helm: Helm, full: Objects, default: Objects) -> None:
    """Events by default, a taint and annotations if asked for; with none of them, no token."""
    events = {("events.k8s.io", "events", ""): "create patch"}

    assert _rules(default.one("ClusterRole", "weightless-node")) == events
    assert _rules(full.one("ClusterRole", "weightless-node")) == events | {
        ("storage.k8s.io", "csinodes", ""): "get",
        ("", "nodes", ""): "get patch",
        ("", "serviceaccounts", ""): "get",
    }
    least = helm.objects("least")
    assert least.of("ClusterRole") == []
    assert least.pods()["weightless-node"]["automountServiceAccountToken"] is False
    assert default.pods()["weightless-node"]["automountServiceAccountToken"] is True
    assert default.pods()["weightless-keeper"]["automountServiceAccountToken"] is False


def test_secrets_are_read_in_namespaces_that_were_named(helm: Helm, full: Objects, default: Objects) -> None:
    """Nowhere by default."""
    reads = {("", "secrets", ""): "get"}

    assert not any("secrets" in str(_rules(each)) for kind in ("Role", "ClusterRole") for each in default.of(kind))
    assert {each["metadata"]["namespace"] for each in full.of("Role", "weightless-secrets")} == {"models", "registry"}
    assert all(_rules(each) == reads for each in full.of("Role", "weightless-secrets"))
    everywhere = helm.objects("default", "controller.secretNamespaces={*}")
    assert _rules(everywhere.one("ClusterRole", "weightless-controller")).items() >= reads.items()
    assert everywhere.of("Role", "weightless-secrets") == []


def test_every_binding_leads_from_an_account_to_a_role_that_exist(full: Objects) -> None:
    """OpenShift's own role is the cluster's."""
    accounts = {each["metadata"]["name"] for each in full.of("ServiceAccount")}
    bindings = full.of("ClusterRoleBinding") + full.of("RoleBinding")

    assert len(bindings) == 7
    for binding in bindings:
        role = binding["roleRef"]
        assert role["name"].startswith("system:openshift:scc:") or full.of(role["kind"], role["name"])
        assert {each["name"] for each in binding["subjects"]} <= accounts
    assert {pod["serviceAccountName"] for pod in full.pods().values()} == accounts


@pytest.mark.parametrize(
    ("case", "settings", "expected"),
    [
        ("full", (), {"privileged": {"weightless", "weightless-keeper"}, "nonroot-v2": {"weightless-controller"}}),
        (
            "default",
            ("openshift=true", "registries.nodeCertsDir=/etc/containerd/certs.d"),
            {"privileged": {"weightless-node", "weightless-keeper", "weightless-controller"}},
        ),
        ("cleanup", ("openshift=true",), {"privileged": {"weightless-cleanup"}}),
        ("default", (), {}),
    ],
    ids=["full", "directory-of-the-node", "cleanup", "elsewhere"],
)
def test_openshift_admits_every_pod_by_the_least_that_fits(
    helm: Helm, case: str, settings: tuple[str, ...], expected: dict[str, set[str]]
) -> None:
    """By default it would admit none: root, directories of the node, and users of our own choice are all refused."""
    objects = helm.objects(case, *settings)
    found = {
        each["roleRef"]["name"].removeprefix("system:openshift:scc:"): {one["name"] for one in each["subjects"]}
        for each in objects.of("RoleBinding")
        if each["roleRef"]["name"].startswith("system:openshift:scc:")
    }

    assert found == expected
    if found:
        assert set().union(*found.values()) == {pod["serviceAccountName"] for pod in objects.pods().values()}


def _rules(role: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    """Verbs by group, resource and name."""
    return {
        (group, resource, ",".join(rule.get("resourceNames", ()))): " ".join(sorted(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
