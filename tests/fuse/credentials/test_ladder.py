"""Which credentials count, in which order, and what the administrator forbids."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from pathlib import Path

import pytest

from fuse.credentials.given import RUNGS, Given, Rung, ServiceAccount, Token
from fuse.credentials.ladder import Found, Ladder
from fuse.credentials.providers import Providers
from fuse.errors import InvalidConfig, InvalidRequest
from tests.support.provider import Programs

HOST = "registry.io:5000"
IMAGE = f"{HOST}/team/m"
SECRET = {"username": "secret", "password": "p"}


def of_both(programs: Programs) -> Providers:
    """A provider that goes by the node, and one that goes by the pod."""
    programs.install("of-node", match=HOST, auth={HOST: {"username": "node", "password": "p"}})
    programs.install("of-pod", match=HOST, audience="registry")
    return Providers(programs.config, programs.bin)


def docker(directory: Path, user: str, **more: object) -> Path:
    auth = base64.b64encode(f"{user}:p".encode()).decode()
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": {HOST: {"auth": auth}}, **more}))
    return directory


def given(**more: object) -> Given:
    """Everything that a pod can bring."""
    token = Token(text="pod|p", expires_at=time.time() + 600)
    values = {"secrets": SECRET, "account": ServiceAccount("ns", "sa"), "tokens": {"registry": token}} | more
    return Given(**values)  # type: ignore[arg-type]


def climb(ladder: Ladder, what: Given, image: str = IMAGE) -> tuple[Found, list[str]]:
    climbing = ladder.climb(what, HOST, cancel=threading.Event(), fresh=False)
    return climbing.find(image), climbing.notes


def test_the_strongest_that_is_allowed_speaks(programs: Programs, tmp_path: Path) -> None:
    """Each rung comes forward when those above it are forbidden, however the list is written."""
    providers = of_both(programs)
    users = ["pod", "secret", "file", "node", None]
    for first, (rung, user) in enumerate(zip(RUNGS, users, strict=True)):
        allow = tuple(reversed(RUNGS[first:]))
        ladder = Ladder(allow=allow, docker_config=docker(tmp_path / "docker", "file"), providers=providers)
        found, _ = climb(ladder, given())
        assert (rung, user) == (found.rung, found.credential.username if found.credential else None)


def test_a_rung_that_has_nothing_for_the_host_is_passed(programs: Programs, tmp_path: Path) -> None:
    """By host and path: a mirror sees none of what is the registry's."""
    ladder = Ladder(docker_config=docker(tmp_path / "docker", "file"), providers=of_both(programs))

    assert "publish-secret" == climb(ladder, given(tokens={}))[0].rung
    assert "driver-secret" == climb(ladder, Given())[0].rung
    assert "anonymous" == climb(ladder, given(), "mirror.io/team/m")[0].rung


def test_a_helper_is_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the file goes before it, and it can be forbidden without that."""
    (tmp_path / "docker-credential-test").write_text('#!/bin/sh\necho \'{"Username":"helper","Secret":"s"}\'\n')
    (tmp_path / "docker-credential-test").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = docker(tmp_path / "docker", "file", credsStore="test")

    assert "driver-secret" == climb(Ladder(docker_config=config), Given())[0].rung
    found, _ = climb(Ladder(docker_config=config), Given(), "other.io/m")
    assert found.credential is not None
    assert ("node-identity", "helper") == (found.rung, found.credential.username)
    assert found.ends_at < time.monotonic() + 3601
    forbidden = Ladder(allow=("driver-secret", "anonymous"), docker_config=config)
    assert "anonymous" == climb(forbidden, Given(), "other.io/m")[0].rung


def test_a_secret_that_does_not_count_is_told(tmp_path: Path) -> None:
    """Whoever named it would wonder. It is not even looked at."""
    found, notes = climb(Ladder(allow=("anonymous",)), Given(secrets={"nonsense": "x"}))

    assert ("anonymous", 1) == (found.rung, len(notes))
    assert "does not allow publish-secret" in notes[0]


def test_a_broken_secret_is_the_requests_fault_and_a_broken_file_the_nodes(tmp_path: Path) -> None:
    """And a broken file is no trouble to who has a secret."""
    (tmp_path / "config.json").write_text("{")
    ladder = Ladder(docker_config=tmp_path)

    with pytest.raises(InvalidRequest):
        climb(ladder, Given(secrets={".dockerconfigjson": "{"}))
    with pytest.raises(InvalidConfig):
        climb(ladder, Given())
    with pytest.raises(InvalidConfig):
        ladder.check()
    assert "publish-secret" == climb(ladder, Given(secrets=SECRET))[0].rung


def test_a_mounted_secret_is_found_and_its_rotation_seen(tmp_path: Path) -> None:
    """kubelet's way: a directory with .dockerconfigjson, behind a symbolic link that is swapped."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for number in ("1", "2"):
        docker(tmp_path / number, f"user{number}")
        (tmp_path / number / "config.json").rename(tmp_path / number / ".dockerconfigjson")
    (mounted / "..data").symlink_to(tmp_path / "1")
    (mounted / ".dockerconfigjson").symlink_to("..data/.dockerconfigjson")
    ladder = Ladder(docker_config=mounted)

    def user() -> str:
        credential = climb(ladder, Given())[0].credential
        assert credential is not None
        return credential.username

    before = ladder.marker()
    assert "user1" == user()
    assert before == ladder.marker()
    (mounted / "..new").symlink_to(tmp_path / "2")
    (mounted / "..new").rename(mounted / "..data")
    assert "user2" == user()
    assert before != ladder.marker()


def test_rungs_are_what_the_administrator_writes() -> None:
    """The names are for good: charts and files have them."""
    expected: tuple[Rung, ...] = ("pod-identity", "publish-secret", "driver-secret", "node-identity", "anonymous")
    assert expected == RUNGS
