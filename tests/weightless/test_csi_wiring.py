"""What the configuration says of registries and credentials holds in the plugins that `weightless csi` starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi import given
from csi.controller_plugin import ControllerSettings
from csi.kubernetes.annotations import AnnotationReader
from csi.plugin import PluginSettings
from csi.provisioner import Provisioner
from fuse.credentials.given import Given
from fuse.errors import Unauthenticated
from fuse.mounting.access import AccessReader
from tests.support.apiserver import FakeApiServer
from tests.support.leaks import Sandbox, sandbox
from tests.support.provider import Programs, pod_of
from weightless import config
from weightless.commands import controller, node
from weightless.options import Settings

REFERENCE = "127.0.0.1:5000/models/tiny:v1"
ROLE = "example.com/role"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with sandbox() as place:
        yield place


@pytest.fixture
def programs(box: Sandbox) -> Programs:
    made = Programs(box.directory("providers"))
    made.install("exchange", match="127.0.0.1:5000", audience="registry", required_annotations=(ROLE,))
    return made


class Started(Exception):
    """In place of a plugin that serves."""

    def __init__(self, settings: PluginSettings) -> None:
        self.settings = settings


class StartedController(Exception):
    """Likewise."""

    def __init__(self, provisioner: Provisioner) -> None:
        self.access: Any = provisioner._access


Start = Callable[..., AccessReader]


@pytest.fixture
def start(box: Sandbox, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Start:
    """How the plugin that `weightless csi` would start with these lines in its file reaches registries."""

    class Plugin:
        def __init__(self, settings: PluginSettings, *_: object) -> None:
            self._settings = settings

        def start(self) -> None:
            raise Started(self._settings)

    monkeypatch.setenv("WEIGHTLESS_RUN_DIR", str(box.run))
    monkeypatch.setattr("csi.plugin.NodePlugin", Plugin)
    monkeypatch.setattr("fuse.logs.configure", lambda *_: None)

    def run(kubernetes: str, *, allow: tuple[str, ...] = ("pod-identity", "publish-secret")) -> AccessReader:
        credentials = {
            "allow": list(allow),
            "provider-config": str(programs.config),
            "provider-bin-dir": str(programs.bin),
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in credentials.items()]
        file = box.root / "weightless.toml"
        file.write_text("\n".join(("[credentials]", *lines, "[kubernetes]", kubernetes, "")))
        settings = Settings(cache_path=str(box.cache), certs_path=None, config=config.load(file))
        options: dict[str, Any] = dict.fromkeys(
            ("kubelet_dir", "metrics_address", "keeper", "max_volumes", "without_resend")
        )
        with pytest.raises(Started) as caught:
            node.run(
                settings,
                endpoint=f"unix://{box.root}/csi.sock",
                node_id="node-a",
                state_dir=box.root / "state",
                with_controller=False,
                **options,
            )
        access = caught.value.settings.access
        assert isinstance(access, AccessReader)
        return access

    return run


def test_who_writes_a_pod_or_a_claim_reaches_nothing_on_the_plugins_own_machine(
    start: Start, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference is a stranger's word: loopback is where the node's own services are."""

    def begin(_settings: ControllerSettings, provisioner: Provisioner) -> None:
        raise StartedController(provisioner)

    monkeypatch.setattr(controller, "ControllerPlugin", begin)
    with pytest.raises(StartedController) as caught:
        controller.run(
            Settings(cache_path=str(box.cache), certs_path=None),
            endpoint=f"unix://{box.root}/csi.sock",
            metrics_address=None,
        )
    for access in (start("", allow=("anonymous",)), caught.value.access):
        assert not access.admit(REFERENCE).access.local_allowed


def alice() -> Given:
    """A pod of ServiceAccount default/alice."""
    return given.parse(*given.apart({}, pod_of("alice", "alice", "a-pw")))


def test_annotations_reach_a_provider_where_the_administrator_lets_the_driver_read_them(
    start: Start, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pod's ServiceAccount, from the API server."""
    with FakeApiServer(tmp_path) as api:
        api.accounts["default/alice"] = {ROLE: "reader", "example.com/other": "x"}
        reader = AnnotationReader("ServiceAccount", "serviceaccounts", "node plugin", lambda: api.cluster)
        monkeypatch.setattr("csi.kubernetes.annotations.ACCOUNTS", reader)
        admission = start("service-account-annotations = true").admit(REFERENCE, alice())

    assert ("pod-identity", "exchange") == (admission.rung, admission.source)
    (run,) = programs.runs()
    assert {ROLE: "reader"} == run["request"]["serviceAccountAnnotations"]


def test_without_that_nobody_is_asked_for_annotations(
    start: Start, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider that requires some is passed over, and the refusal says why."""
    with FakeApiServer(tmp_path) as api:
        reader = AnnotationReader("ServiceAccount", "serviceaccounts", "node plugin", lambda: api.cluster)
        monkeypatch.setattr("csi.kubernetes.annotations.ACCOUNTS", reader)
        with pytest.raises(Unauthenticated, match=f"requires the annotations {ROLE}, which this driver cannot read"):
            start("").admit(REFERENCE, alice())
        assert [] == api.requests
    assert [] == programs.runs()


def test_a_rung_that_is_forbidden_does_not_count_for_the_plugin(start: Start, programs: Programs) -> None:
    """Neither the pod's token, nor its secret; and what remains holds."""
    programs.install("exchange", match="127.0.0.1:5000", audience="registry")
    secret = given.parse({"username": "bob", "password": "b-pw"}, {})
    rungs = {
        allow: [start("", allow=(allow, "anonymous")).admit(REFERENCE, of).rung for of in (alice(), secret)]
        for allow in ("pod-identity", "publish-secret")
    }
    assert {"pod-identity": ["pod-identity", "anonymous"], "publish-secret": ["anonymous", "publish-secret"]} == rungs
