"""Which credentials go to which host."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from fuse.errors import InvalidRequest
from fuse.mounting.access import AccessReader

REGISTRY = "registry.example.com"
MIRROR = "mirror.example.com"


def reader(tmp_path: Path, *, node: bool = True) -> AccessReader:
    """A node whose hosts.toml names a mirror, and whose docker config knows the mirror."""
    directory = tmp_path / "certs" / REGISTRY
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(f'server = "https://{REGISTRY}"\n[host."https://{MIRROR}"]\n')
    docker = tmp_path / "docker"
    docker.mkdir()
    auth = base64.b64encode(b"node:wide").decode()
    (docker / "config.json").write_text(json.dumps({"auths": {MIRROR: {"auth": auth}}}))
    return AccessReader(certs_dir=tmp_path / "certs", plain_http=False, docker_config=docker, use_node_credentials=node)


def users(access: object) -> list[str | None]:
    return [e.credential and e.credential.username for e in access.endpoints]  # type: ignore[attr-defined]


def test_a_pods_password_goes_to_the_registry_of_its_reference_and_to_no_mirror(tmp_path: Path) -> None:
    """A mirror sees the node's credentials for it, never the pod's."""
    access = reader(tmp_path).access(f"{REGISTRY}/m:v1", {"username": "pod", "password": "hunter2"})

    assert ["node", "pod"] == users(access)


def test_the_nodes_credentials_can_be_forbidden(tmp_path: Path) -> None:
    """Without them, a host that the secrets do not name is asked anonymously."""
    access = reader(tmp_path, node=False).access(f"{REGISTRY}/m:v1", {"username": "pod", "password": "hunter2"})

    assert [None, "pod"] == users(access)


def test_a_broken_secret_is_refused_without_being_shown(tmp_path: Path) -> None:
    """The error names the key, not its content."""
    with pytest.raises(InvalidRequest) as caught:
        reader(tmp_path).access(f"{REGISTRY}/m:v1", {".dockerconfigjson": "hunter2{"})

    assert "dockerconfigjson" in str(caught.value)
    assert "hunter2" not in str(caught.value)
