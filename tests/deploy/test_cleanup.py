"""What is done before an uninstall: nothing while a pod uses a model, and then all of it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import CHART, VALUES, Helm

pytestmark = pytest.mark.timeout(600)

MOUNTS = "/var/lib/kubelet/plugins/csi.weightless.dev/mounts"
OTHER = "36 25 0:30 / /var/lib/kubelet/pods/1/volumes/kubernetes.io~projected/token rw shared:9 - tmpfs tmpfs rw"
OURS = f"97 25 0:77 / {MOUNTS}/abc ro,nosuid,nodev,noexec shared:40 - fuse.weightless weightless ro"


# ---- on a node ----


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a driver has left, a cache within the state directory's own among it."""
    for name in ("cache", "state", "plugin", "keeper"):
        (tmp_path / "left" / name / "deep" / "er").mkdir(parents=True)
        (tmp_path / "left" / name / "deep" / "file").write_text("bytes")
    return tmp_path / "left"


def clean(left: Path, *mounts: str) -> subprocess.CompletedProcess[str]:
    table = left.parent / "mountinfo"
    table.write_text("".join(f"{line}\n" for line in mounts))
    environment = {"PATH": "/usr/bin:/bin", "LEFT": str(left), "MOUNTINFO": str(table), "MOUNTS": MOUNTS}
    script = (CHART / "files" / "cleanup.sh").read_text()
    return subprocess.run(
        ["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=20
    )


def test_a_node_is_left_empty(left: Path) -> None:
    """The directories themselves stay: they are mounts of the container that cleans."""
    answer = clean(left, OTHER)

    assert (answer.returncode, answer.stderr) == (0, "")
    assert sorted(path.name for path in left.rglob("*")) == ["cache", "keeper", "plugin", "state"]


def test_a_node_whose_pods_use_a_model_is_left_alone(left: Path) -> None:
    """Nothing is removed, and the mount is named."""
    before = sorted(left.rglob("*"))
    answer = clean(left, OTHER, OURS)

    assert answer.returncode == 1
    assert f"{MOUNTS}/abc" in answer.stderr
    assert sorted(left.rglob("*")) == before


def test_a_node_whose_mounts_are_not_known_is_left_alone(left: Path) -> None:
    """Without a mount table nothing is removed."""
    script = (CHART / "files" / "cleanup.sh").read_text()
    environment = {"PATH": "/usr/bin:/bin", "LEFT": str(left), "MOUNTINFO": "/nowhere", "MOUNTS": MOUNTS}
    answer = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, check=False, timeout=20)

    assert answer.returncode == 1
    assert (left / "cache" / "deep" / "file").exists()


# ---- in the cluster ----


def pod(name: str, volume: dict[str, Any], phase: str = "Running") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"metadata": metadata, "spec": {"volumes": [{"name": "model", **volume}]}, "status": {"phase": phase}}


def persistent(driver: str, claim: str) -> dict[str, Any]:
    reference = {"namespace": "default", "name": claim}
    return {"metadata": {"name": f"pv-{claim}"}, "spec": {"csi": {"driver": driver}, "claimRef": reference}}


INLINE = {"csi": {"driver": "csi.weightless.dev"}}
CLAIM = {"persistentVolumeClaim": {"claimName": "llama"}}
EPHEMERAL: dict[str, Any] = {"ephemeral": {"volumeClaimTemplate": {}}}


@contextmanager
def api_server(pods: list[dict[str, Any]], volumes: list[dict[str, Any]], directory: Path) -> Iterator[Path]:
    """As much of one as helm asks: what there is, pods and PersistentVolumes. Gives a kubeconfig."""

    def listed(kind: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}

    resources = [
        {"name": name, "kind": kind, "namespaced": kind == "Pod", "verbs": ["get", "list"]}
        for name, kind in (("pods", "Pod"), ("persistentvolumes", "PersistentVolume"))
    ]
    answers = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": resources},
        "/api/v1/pods": listed("Pod", pods),
        "/api/v1/persistentvolumes": listed("PersistentVolume", volumes),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answers.get(self.path.partition("?")[0])
            body = json.dumps(content or {"kind": "Status", "code": 404}).encode()
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        kubeconfig = directory / "kubeconfig"
        address = f"http://127.0.0.1:{server.server_address[1]}"
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": {"server": address}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": ""}}],
                    "current-context": "test",
                }
            )
        )
        try:
            yield kubeconfig
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("pods", "volumes", "users"),
    [
        ([pod("a", INLINE)], [], ["default/a"]),
        ([pod("a", CLAIM)], [persistent("csi.weightless.dev", "llama")], ["default/a"]),
        ([pod("a", EPHEMERAL)], [persistent("csi.weightless.dev", "a-model")], ["default/a"]),
        ([pod("a", INLINE, "Succeeded"), pod("b", CLAIM)], [persistent("other.csi", "llama")], []),
        ([pod("a", {"emptyDir": {}})], [persistent("csi.weightless.dev", "unused")], []),
    ],
    ids=["inline", "claim", "generic-ephemeral", "done-and-others", "unused"],
)
def test_cleaning_is_refused_while_pods_use_models(
    helm: Helm, pods: list[dict[str, Any]], volumes: list[dict[str, Any]], users: list[str], tmp_path: Path
) -> None:
    """Only the driver can take their volumes away; the pods are named. Asked with the rights of who runs helm."""
    with api_server(pods, volumes, tmp_path) as kubeconfig:
        answer = helm.run(
            "template",
            "weightless",
            CHART,
            "--dry-run=server",
            "--kube-version=1.34",
            f"--values={VALUES / 'cleanup.yaml'}",
            KUBECONFIG=str(kubeconfig),
            HOME=str(tmp_path),
        )

    assert (answer.returncode != 0) == bool(users), answer.stderr
    if users:
        assert f"{len(users)} pods use model volumes; end them first: {', '.join(users)}" in answer.stderr
