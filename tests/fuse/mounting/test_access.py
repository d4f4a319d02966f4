"""Which credentials go to which host, and what is said when they are refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from fuse.credentials.given import Given, Rung, ServiceAccount
from fuse.credentials.ladder import Ladder
from fuse.errors import AddressRefused, Forbidden, InvalidConfig, InvalidRequest, Unauthenticated, Unavailable
from fuse.mounting.access import AccessReader, Admission
from fuse.registry.access import Access

REGISTRY = "registry.example.com"
MIRROR = "mirror.example.com"
POD = {"username": "pod", "password": "hunter2"}


def reader(tmp_path: Path, **more: object) -> AccessReader:
    """A node whose hosts.toml names a mirror, and whose docker config knows the mirror."""
    directory = tmp_path / "certs" / REGISTRY
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(f'server = "https://{REGISTRY}"\n[host."https://{MIRROR}"]\n')
    docker = tmp_path / "docker"
    docker.mkdir()
    auth = base64.b64encode(b"node:wide").decode()
    (docker / "config.json").write_text(json.dumps({"auths": {MIRROR: {"auth": auth}}}))
    return AccessReader(certs_dir=tmp_path / "certs", docker_config=docker, **more)  # type: ignore[arg-type]


def users(access: Access) -> list[str | None]:
    return [e.credential and e.credential.username for e in access.endpoints]


def test_a_pods_password_goes_to_the_registry_of_its_reference_and_to_no_mirror(tmp_path: Path) -> None:
    """A mirror sees the node's credentials for it, never the pod's."""
    admission = reader(tmp_path).admit(f"{REGISTRY}/m:v1", Given(secrets=POD))

    assert ["node", "pod"] == users(admission.access)
    assert ("publish-secret", {"publish-secret", "driver-secret"}) == (admission.rung, admission.rungs)


def test_the_nodes_credentials_can_be_forbidden(tmp_path: Path) -> None:
    """Without them, a host that the secrets do not name is asked anonymously."""
    ladder = Ladder(allow=("publish-secret", "anonymous"))
    admission = reader(tmp_path, credentials=ladder).admit(f"{REGISTRY}/m:v1", Given(secrets=POD))

    assert ([None, "pod"], "publish-secret") == (users(admission.access), admission.rung)


def test_who_has_no_credentials_can_be_refused(tmp_path: Path) -> None:
    """Before anybody is asked; a mirror may go without, the registry may not."""
    node = reader(tmp_path, credentials=Ladder(allow=("publish-secret",)))

    with pytest.raises(Unauthenticated, match=f"none for {REGISTRY}.*nodePublishSecretRef"):
        node.admit(f"{REGISTRY}/m:v1")
    assert [None, "pod"] == users(node.admit(f"{REGISTRY}/m:v1", Given(secrets=POD)).access)


def test_a_server_elsewhere_is_the_registry(tmp_path: Path) -> None:
    """Its credentials are those that count: they let a pod in where nobody is anonymous, and are looked after as theirs are."""
    node = reader(tmp_path, credentials=Ladder(allow=("driver-secret",), docker_config=tmp_path / "docker"))
    (tmp_path / "certs" / REGISTRY / "hosts.toml").write_text(f'server = "https://{MIRROR}"\n')
    admission = node.admit(f"{REGISTRY}/m:v1")

    assert (["node"], "driver-secret") == (users(admission.access), admission.rung)


def test_a_broken_secret_is_refused_without_being_shown(tmp_path: Path) -> None:
    """The error names the key, not its content."""
    with pytest.raises(InvalidRequest) as caught:
        reader(tmp_path).access(f"{REGISTRY}/m:v1", {".dockerconfigjson": "hunter2{"})

    assert "dockerconfigjson" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("rung", "words"),
    [
        ("pod-identity", "provider ecr gave these for ServiceAccount ns/sa"),
        ("publish-secret", "correct it"),
        ("driver-secret", r"the driver's own \(docker-config\)"),
        ("node-identity", "of the node, by ecr"),
        ("anonymous", f"there were no credentials for {REGISTRY}"),
    ],
)
def test_a_refusal_says_whose_credentials_they_were(rung: Rung, words: str) -> None:
    """And why others were not used; any other error is left as it is."""
    admission = Admission(
        access=Access(registry=REGISTRY, endpoints=()),
        rung=rung,
        source="ecr",
        account=str(ServiceAccount("ns", "sa")),
        notes=("provider gcr ended with code 1",),
    )

    for error in (Unauthenticated("no", where="m"), Forbidden("no", where="m")):
        explained = admission.explained(error)
        assert type(error) is type(explained)
        with pytest.raises(type(error), match=f"m: no .*{words}.*; provider gcr ended with code 1"):
            raise explained
    better = Unauthenticated("no", where="m", fix="tell whoever runs the registry")
    assert str(admission.explained(better)).startswith("m: no (tell whoever runs the registry; ")
    other = Unavailable("down")
    assert other is admission.explained(other)


@pytest.mark.parametrize(
    ("reference", "allowed"),
    [
        (f"{REGISTRY}/models/llama:v1", True),
        (f"{REGISTRY}/models-of-others/llama:v1", False),
        (f"{REGISTRY}/other:v1", False),
        ("a.models.example.com/m:v1", True),
        ("models.example.com/m:v1", False),
        ("a.b.models.example.com/m:v1", False),
        (f"{REGISTRY}:8443/models/llama:v1", False),
        ("llama", False),
    ],
)
def test_only_what_is_allowed_is_asked_for(tmp_path: Path, reference: str, allowed: bool) -> None:
    """What is not is refused before a credential of anybody is looked up."""
    node = reader(tmp_path, allowed=(f"{REGISTRY}/models", "*.models.example.com"))
    (tmp_path / "docker" / "config.json").write_text("broken")

    with pytest.raises(InvalidConfig if allowed else AddressRefused) as caught:
        node.access(reference)
    assert allowed or "[registry] allowed" in caught.value.fix


def test_an_empty_list_allows_nothing(tmp_path: Path) -> None:
    """It is not the same as no list."""
    with pytest.raises(AddressRefused):
        reader(tmp_path, allowed=()).access(f"{REGISTRY}/m:v1")
