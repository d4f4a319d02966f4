"""config.json, credential helpers as real programs, and Kubernetes secrets."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from fuse.credentials import dockerconfig
from fuse.credentials.dockerconfig import DockerConfig, from_secrets
from fuse.errors import InvalidConfig, InvalidRequest, Unavailable
from fuse.registry.access import Credential

SECRET = "hunter2"


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def config(directory: Path, **content: object) -> DockerConfig:
    (directory / "config.json").write_text(json.dumps(content))
    return DockerConfig.load(directory)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH; write docker-credential-NAME scripts with `install`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs


def install(programs: Path, name: str, script: str) -> None:
    path = programs / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.test:5000", "registry.test:5000"),
        ("https://registry.test", "registry.test"),
        ("http://registry.test/v2/", "registry.test"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
def test_keys_are_understood_as_docker_writes_them(tmp_path: Path, key: str, host: str) -> None:
    """Bare hosts, URLs, and Docker Hub's many names."""
    docker = config(tmp_path, auths={key: auth("u", "a:b")})

    assert Credential(username="u", password="a:b") == docker.credential(host)
    assert docker.credential("other.test") is None
    assert docker.credential("registry.test:5001") is None


def test_a_key_with_a_path_is_not_the_whole_registry(tmp_path: Path) -> None:
    """A credential for one team's part is not sent for another's."""
    assert config(tmp_path, auths={"registry.test/team": auth("u", "p")}).credential("registry.test") is None


def test_tokens_are_kept_apart(tmp_path: Path) -> None:
    """Identity and registry tokens, and plain fields."""
    docker = config(
        tmp_path,
        auths={
            "a.test": {**auth("u", ""), "identitytoken": "it"},
            "b.test": {"registrytoken": "rt"},
            "c.test": {"username": "u", "password": "p"},
            "d.test": {},
        },
    )

    for token in ("r\r\nX-Evil: 1", "r t", "\u00e9"):
        with pytest.raises(InvalidConfig, match=r"auths\.x\.test\.registrytoken is no token"):
            config(tmp_path, auths={"x.test": {"registrytoken": token}}).credential("x.test")

    assert Credential(username="u", identity_token="it") == docker.credential("a.test")
    assert Credential(registry_token="rt") == docker.credential("b.test")
    assert Credential(username="u", password="p") == docker.credential("c.test")
    assert docker.credential("d.test") is None


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$DOCKER_CONFIG, then ~/.docker; none is no error."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    assert DockerConfig.load(None).credential("registry.test") is None

    (tmp_path / ".docker").mkdir()
    config(tmp_path / ".docker", auths={"registry.test": auth("home", "p")})
    (tmp_path / "other").mkdir()
    config(tmp_path / "other", auths={"registry.test": auth("variable", "p")})
    home = DockerConfig.load(None).credential("registry.test")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "other"))
    variable = DockerConfig.load(None).credential("registry.test")

    assert home is not None
    assert variable is not None
    assert ("home", "variable") == (home.username, variable.username)


@pytest.mark.parametrize(
    "text",
    [
        *(b"{", b"[]", b'{"auths": 1}', b'{"auths": {"x": {"auth": 5, "password": "hunter2"}}}'),
        *(b'{"auths": {"x": {"password": "hunter2\xff"}}}', b'{"auths": {"hunter2\xff": {}}}'),
    ],
)
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, text: bytes) -> None:
    """The error holds no piece of the file."""
    (tmp_path / "config.json").write_bytes(text)

    with pytest.raises(InvalidConfig, match=r"config\.json") as caught:
        DockerConfig.load(tmp_path)
    assert SECRET not in str(caught.value)


def test_a_broken_auth_is_named_and_not_quoted(tmp_path: Path) -> None:
    """Only the host's entry is told."""
    for broken in (f"{SECRET}!", base64.b64encode(SECRET.encode()).decode()):
        with pytest.raises(InvalidConfig, match=r"auths\.registry\.test\.auth") as caught:
            config(tmp_path, auths={"registry.test": {"auth": broken}}).credential("registry.test")
        assert broken not in str(caught.value)


def test_helpers_are_asked_by_host_then_by_default_then_the_file(tmp_path: Path, helper: Path) -> None:
    """credHelpers before credsStore before auths."""
    install(helper, "one", 'read host; echo "{\\"Username\\":\\"one\\",\\"Secret\\":\\"$host\\"}"')
    install(
        helper,
        "all",
        'read host; [ "$host" = none.test ] && { echo "credentials not found in native keychain"; exit 1; };'
        'echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"$host\\"}"',
    )
    docker = config(
        tmp_path,
        auths={"none.test": auth("file", "p"), "one.test": {}},
        credHelpers={"one.test": "one"},
        credsStore="all",
    )

    assert Credential(username="one", password="one.test") == docker.credential("one.test")
    assert Credential(identity_token="https://index.docker.io/v1/") == docker.credential("docker.io")
    assert Credential(username="file", password="p") == docker.credential("none.test")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"echo {SECRET}; exit 3", "code 3"),
        (f"echo {SECRET}", "did not answer with credentials"),
        (f'printf \'{{"Secret": "{SECRET}\\377"}}\'', "did not answer with credentials"),
        (f"echo {SECRET} >&2; kill -9 $$", "code -9"),
    ],
)
def test_a_helper_that_fails_is_named_and_not_quoted(tmp_path: Path, helper: Path, script: str, expected: str) -> None:
    """Its output may hold a secret."""
    install(helper, "bad", script)

    with pytest.raises(InvalidConfig, match=expected) as caught:
        config(tmp_path, credsStore="bad").credential("registry.test")
    assert "docker-credential-bad" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_missing_helper_is_named(tmp_path: Path, helper: Path) -> None:
    """And a name that is a path starts nothing."""
    with pytest.raises(InvalidConfig, match="docker-credential-absent cannot be started"):
        config(tmp_path, credsStore="absent").credential("registry.test")
    with pytest.raises(InvalidConfig, match="not usable"):
        config(tmp_path, credsStore="../../bin/sh").credential("registry.test")


def test_a_helper_has_a_time_limit_with_all_its_children(
    tmp_path: Path, helper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that keeps the pipe open does not hold us up, nor does it stay behind."""
    monkeypatch.setattr(dockerconfig, "HELPER_TIMEOUT_S", 0.3)
    install(helper, "slow", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    start = time.monotonic()

    with pytest.raises(Unavailable, match="did not answer"):
        config(tmp_path, credsStore="slow").credential("registry.test")

    assert time.monotonic() - start < 5
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# ---- secrets ----


def test_a_dockerconfigjson_secret_names_its_hosts() -> None:
    """As kubectl create secret docker-registry writes it."""
    secret = {".dockerconfigjson": json.dumps({"auths": {"https://index.docker.io/v1/": auth("u", "p")}})}

    credential = from_secrets(secret)

    assert Credential(username="u", password="p") == credential("docker.io")
    assert credential("registry.test") is None


def test_an_auth_may_be_wrapped() -> None:
    """As base64 wraps what is long: keys of service accounts are."""
    long = base64.encodebytes(b"_json_key:" + b"k" * 200).decode()
    assert "\n" in long[:-1]

    credential = from_secrets({".dockerconfigjson": json.dumps({"auths": {"registry.test": {"auth": long}}})})

    assert Credential(username="_json_key", password="k" * 200) == credential("registry.test")


def test_a_secret_starts_no_helper(helper: Path, tmp_path: Path) -> None:
    """It is the pod's: it may not choose programs that run on the node."""
    install(helper, "evil", f"touch {tmp_path}/started")
    secret = {".dockerconfigjson": json.dumps({"credsStore": "evil", "credHelpers": {"registry.test": "evil"}})}

    assert from_secrets(secret)("registry.test") is None
    assert not (tmp_path / "started").exists()


def test_user_name_and_password_are_for_the_registry_only() -> None:
    """A mirror does not get them once the registry is told."""
    secret = {"username": "u", "password": "p"}
    user = Credential(username="u", password="p")

    assert user == from_secrets(secret)("any.test")
    assert user == from_secrets(secret, registry="registry.test")("registry.test")
    assert from_secrets(secret, registry="registry.test")("mirror.test") is None
    assert user == from_secrets(secret, registry="docker.io")("registry-1.docker.io")


@pytest.mark.parametrize(
    "secrets",
    [
        {"user": "u", "pass": SECRET},
        {"username": "u"},
        {"password": SECRET},
        {"username": "", "password": SECRET},
        {".dockerconfigjson": SECRET},
        {".dockerconfigjson": '{"auths": []}'},
        {".dockerconfigjson": '{"auths": {}, "x": ' + "[" * 100_000},
    ],
)
def test_an_unusable_secret_says_what_to_give(secrets: dict[str, str]) -> None:
    """Its keys are told, never its values."""
    with pytest.raises(InvalidRequest, match=r"give \.dockerconfigjson") as caught:
        from_secrets(secrets)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("auth", [SECRET, f"{SECRET}é", "/w=="])
def test_a_broken_auth_in_a_secret_is_the_requests_fault(auth: str) -> None:
    """InvalidRequest, for it came with one."""
    secret = {".dockerconfigjson": json.dumps({"auths": {"registry.test": {"auth": auth}}})}

    with pytest.raises(InvalidRequest) as caught:
        from_secrets(secret)("registry.test")
    assert SECRET not in str(caught.value)


def test_no_secrets_are_no_credentials() -> None:
    """An empty map is what kubelet sends without a secret."""
    assert from_secrets({})("registry.test") is None
