"""Asking the API server for an object's annotations, over TLS, with a pod's ServiceAccount."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from csi.kubernetes import annotations
from csi.kubernetes.annotations import AnnotationReader
from csi.kubernetes.cluster import in_cluster
from csi.templates import Claim
from fuse.errors import InvalidConfig, NotFound, Unavailable, WeightlessError
from tests.support.dockerregistry import Certificates

CLAIM = Claim("team-a", "llama")
PATH = "/api/v1/namespaces/team-a/persistentvolumeclaims/llama"
OBJECT = {"kind": "PersistentVolumeClaim", "metadata": {"name": "llama", "annotations": {"model": "tiny:v1"}}}


class Server:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, certificates: Certificates) -> None:
        self.status = 200
        self.content: bytes = json.dumps(OBJECT).encode()
        self.asked: list[tuple[str, str]] = []
        self.hold = threading.Event()
        """Nothing is answered while it is not set."""
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization", "")))
                outer.hold.wait(10)
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = certificates.server_context().wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._server.server_port)}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates.create(tmp_path_factory.mktemp("certificates") / "ca")


@pytest.fixture
def server(certificates):
    made = Server(certificates)
    yield made
    made.close()


@pytest.fixture
def account(tmp_path: Path, certificates: Certificates) -> Path:
    (tmp_path / "ca.crt").write_bytes(certificates.ca.read_bytes())
    (tmp_path / "token").write_text("first\n")
    return tmp_path


def claims(account: Path, server: Server) -> AnnotationReader:
    return reader(account, server.environment)


def reader(account: Path, environment: dict[str, str]) -> AnnotationReader:
    return AnnotationReader(
        "PersistentVolumeClaim", "persistentvolumeclaims", "controller", lambda: in_cluster(environment, account)
    )


def test_annotations_are_asked_for_with_the_token_of_now(server, account):
    """Kubelet renews the file while the controller runs."""
    api = claims(account, server)

    assert {"model": "tiny:v1"} == api.annotations(CLAIM)
    (account / "token").write_text("second")
    api.annotations(CLAIM)
    assert [(PATH, "Bearer first"), (PATH, "Bearer second")] == server.asked


def test_a_claim_without_annotations_has_none(server, account):
    """The field is left out then."""
    server.content = b'{"metadata": {"name": "llama"}}'
    assert {} == claims(account, server).annotations(CLAIM)


def test_a_name_is_no_path(server, account):
    """Names come from outside."""
    server.status = 404
    with pytest.raises(NotFound):
        claims(account, server).annotations(Claim("a/../../secrets", "b?c"))
    assert "/api/v1/namespaces/a%2F..%2F..%2Fsecrets/persistentvolumeclaims/b%3Fc" == server.asked[0][0]


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (404, b"{}", NotFound),
        (403, b"{}", InvalidConfig),
        (401, b"{}", InvalidConfig),
        (500, b"", Unavailable),
        (200, b"[]", Unavailable),
    ],
)
def test_each_answer_has_its_error(server, account, status: int, content: bytes, kind: type[WeightlessError]):
    """It names the claim, and never the token."""
    server.status, server.content = status, content
    with pytest.raises(kind) as caught:
        claims(account, server).annotations(CLAIM)
    assert "team-a/llama" in caught.value.where
    assert "first" not in str(caught.value)


def test_who_is_not_the_cluster_is_not_told_the_token(server, account, tmp_path_factory):
    """A certificate of another authority ends it before anything is sent."""
    other = Certificates.create(tmp_path_factory.mktemp("other") / "ca")
    (account / "ca.crt").write_bytes(other.ca.read_bytes())
    with pytest.raises(Unavailable):
        claims(account, server).annotations(CLAIM)
    assert [] == server.asked


def test_an_api_server_that_does_not_answer_is_waited_for_once(server, account, monkeypatch):
    """However many providers and pods want annotations: a publish has two minutes. Later it is asked again."""
    monkeypatch.setattr(annotations, "LIMIT_S", 0.2)
    api = claims(account, server)
    server.hold.clear()
    for claim in (CLAIM, CLAIM, Claim("team-b", "llama")):
        with pytest.raises(Unavailable) as caught:
            api.annotations(claim)
        assert str(claim.namespace) in caught.value.where
    assert 1 == len(server.asked)
    server.hold.set()
    monkeypatch.setattr(annotations, "HOLDS_S", 0.0)
    assert {"model": "tiny:v1"} == api.annotations(CLAIM)


@pytest.mark.parametrize("missing", ["KUBERNETES_SERVICE_HOST", "token", "ca.crt"])
def test_outside_of_a_pod_it_says_so(server, account, missing: str):
    """An administrator can mend it: FAILED_PRECONDITION."""
    environment = {name: value for name, value in server.environment.items() if name != missing}
    (account / missing).unlink(missing_ok=True)
    with pytest.raises(InvalidConfig) as caught:
        reader(account, environment).annotations(CLAIM)
    assert "team-a/llama" in caught.value.where
    assert "automountServiceAccountToken" in caught.value.fix


def test_each_kind_has_its_path_and_its_right(server, account):
    """Of ServiceAccounts it is the node plugin that asks."""
    accounts = AnnotationReader(
        "ServiceAccount", "serviceaccounts", "node plugin", lambda: in_cluster(server.environment, account)
    )
    assert {"model": "tiny:v1"} == accounts.annotations(CLAIM)
    assert "/api/v1/namespaces/team-a/serviceaccounts/llama" == server.asked[0][0]
    server.status = 403
    with pytest.raises(InvalidConfig) as caught:
        accounts.annotations(CLAIM)
    assert "let the node plugin's ServiceAccount get serviceaccounts" == caught.value.fix
