"""Credentials as docker keeps them: config.json, its credential helpers, and Kubernetes secrets of the same format.

Used on the privileged side only. A helper is a program that the administrator installed; secrets of pods may name none. No error
says more than which file, host or helper it was about.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from fuse.artifact.reference import DOCKER_HUB
from fuse.errors import InvalidConfig, InvalidRequest, Unavailable, WeightlessError
from fuse.registry.access import Credential

HELPER_TIMEOUT_S: Final = 10.0
DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
DOCKERCONFIGJSON: Final = ".dockerconfigjson"
_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND: Final = "credentials not found in native keychain"
_IDENTITY_USER: Final = "<token>"
_MAX_FILE_BYTES: Final = 1024 * 1024
_FIX_IN_FILE: Final = "log in anew with docker login, or point $DOCKER_CONFIG to another directory"
_FIX_IN_POD: Final = "make the secret anew: kubectl create secret docker-registry"


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _Content(msgspec.Struct):
    auths: dict[str, _Entry] | None = None
    cred_helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)
    creds_store: str | None = msgspec.field(name="credsStore", default=None)


class _HelperAnswer(msgspec.Struct):
    username: str = msgspec.field(name="Username", default="")
    secret: str = msgspec.field(name="Secret", default="")


class DockerConfig:
    """One config.json, read once. Thread-safe."""

    def __init__(self, content: Any, where: str) -> None:
        """`content` is a parsed config.json; see `load`."""
        self._where = where
        self._content: _Content = content

    @classmethod
    def load(cls, directory: Path | None) -> DockerConfig:
        """The config.json of a directory; None: of $DOCKER_CONFIG, else ~/.docker. One that does not exist is empty.

        Raises InvalidConfig.
        """
        if directory is None:
            named = os.environ.get("DOCKER_CONFIG")
            directory = Path(named) if named else Path("~/.docker").expanduser()
        path = directory / "config.json"
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return cls(_Content(), str(path))
        except OSError as error:
            fix = "let this user read it, or point $DOCKER_CONFIG to another directory"
            raise InvalidConfig(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from None
        content = _parse(text)
        if content is None:
            raise InvalidConfig(
                "not a docker config (JSON with auths, credHelpers, credsStore)", where=str(path), fix=_FIX_IN_FILE
            )
        return cls(content, str(path))

    def credential(self, host: str) -> Credential | None:
        """What to show to `host` (`host[:port]`, `docker.io` for Docker Hub); None: nothing.

        A helper for the host is asked before the global one, both before what stands in the file. Raises InvalidConfig for a
        helper that does not work, Unavailable for one that takes longer than HELPER_TIMEOUT_S.
        """
        host = _canonical(host)
        helpers = {_canonical(key): name for key, name in (self._content.cred_helpers or {}).items()}
        helper = helpers.get(host) or self._content.creds_store
        if helper:
            found = _ask_helper(helper, host, self._where)
            if found is not None:
                return found
        return self.stored(host)

    def stored(self, host: str) -> Credential | None:
        """What stands in the file itself, without asking any helper. Raises InvalidConfig."""
        host = _canonical(host)
        for key, entry in (self._content.auths or {}).items():
            if _host_of_key(key) == host:
                return self._credential_of(entry, key)
        return None

    def _credential_of(self, entry: _Entry, key: str) -> Credential | None:
        username, password = entry.username, entry.password
        if entry.auth:
            try:
                username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                colon = ""
            if not colon:
                raise InvalidConfig(
                    f"auths.{key}.auth is not base64 of user:password", where=self._where, fix=_FIX_IN_FILE
                )
            password = password.rstrip("\0")  # as docker: some tools wrote C strings
        credential = Credential(
            username=username,
            password=password,
            identity_token=entry.identitytoken,
            registry_token=entry.registrytoken,
        )
        return credential if credential != Credential() else None


def from_secrets(secrets: Mapping[str, str], *, registry: str = "") -> Callable[[str], Credential | None]:
    """The credentials in a Kubernetes secret: `.dockerconfigjson`, or `username` and `password`.

    `username` and `password` name no host: they are for `registry`, or, when that is not given, for every host that is asked
    about.
    Raises InvalidRequest.
    """
    names = sorted(secrets)
    if not names:
        return lambda _host: None
    fix = f"give {DOCKERCONFIGJSON}, or username and password"
    if DOCKERCONFIGJSON in secrets:
        content = _parse(secrets[DOCKERCONFIGJSON].encode())
        if content is None:
            raise InvalidRequest(
                "is not a docker config (JSON with auths)", where=f"secret {DOCKERCONFIGJSON}", fix=fix
            )
        # Helpers in a pod's secret would be programs that the pod chooses and root runs.
        config = DockerConfig(_Content(auths=content.auths), f"secret {DOCKERCONFIGJSON}")
        return _checked(config)
    if not secrets.get("username") or "password" not in secrets:
        raise InvalidRequest(f"no usable key among {', '.join(names)[:200]}", where="secrets", fix=fix)
    credential = Credential(username=secrets["username"], password=secrets["password"])
    only = _canonical(registry) if registry else ""
    return lambda host: credential if not only or _canonical(host) == only else None


def _checked(config: DockerConfig) -> Callable[[str], Credential | None]:
    def credential(host: str) -> Credential | None:
        try:
            return config.stored(host)
        except InvalidConfig as error:
            raise InvalidRequest(error.what, where=error.where, fix=_FIX_IN_POD) from None

    return credential


def _parse(text: bytes) -> _Content | None:
    if len(text) > _MAX_FILE_BYTES:
        return None
    try:
        return msgspec.json.decode(text, type=_Content)
    except msgspec.DecodeError:
        # Its message could quote a secret.
        return None


def _canonical(host: str) -> str:
    host = _host_of_key(host) or host
    return DOCKER_HUB if host in _HUB_NAMES else host


def _host_of_key(key: str) -> str:
    """The host of a key of `auths`: bare, or a URL, with the paths that docker writes. Other paths name parts of a registry."""
    parts = urlsplit(key if "://" in key else f"//{key}")
    if parts.path.strip("/") not in ("", "v1", "v2"):
        return ""
    return DOCKER_HUB if parts.netloc in _HUB_NAMES else parts.netloc


def _ask_helper(name: str, host: str, where: str) -> Credential | None:
    """`docker-credential-NAME get`: the host on standard input, JSON on standard output (docker/docker-credential-helpers)."""
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidConfig(
            "the name of a credential helper is not usable", where=where, fix="mend credsStore and credHelpers there"
        )
    program = f"docker-credential-{name}"
    asked = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    except OSError as error:
        raise InvalidConfig(
            f"{program} cannot be started: {error.strerror}", where=where, fix="install it or remove it from the config"
        ) from None
    with process:
        try:
            output, _ = process.communicate(asked.encode(), timeout=HELPER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            fix = f"see what it waits for: echo {host} | {program} get"
            raise Unavailable(f"{program} did not answer within {HELPER_TIMEOUT_S:g} s", where=where, fix=fix) from None
        finally:
            # Its whole session: a helper may be a script whose children hold the pipes.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return _helper_credential(program, process.returncode, output, where)


def _helper_credential(program: str, code: int, output: bytes, where: str) -> Credential | None:
    if code != 0:
        if _NOT_FOUND in output[:4096].decode(errors="replace"):
            return None
        raise _helper_failed(program, f"ended with code {code}", where)
    try:
        answer = msgspec.json.decode(output, type=_HelperAnswer)
    except msgspec.DecodeError:
        raise _helper_failed(program, "did not answer with credentials", where) from None
    if not answer.username and not answer.secret:
        return None
    if answer.username == _IDENTITY_USER:
        return Credential(identity_token=answer.secret)
    return Credential(username=answer.username, password=answer.secret)


def _helper_failed(program: str, how: str, where: str) -> WeightlessError:
    return InvalidConfig(f"{program} {how}", where=where, fix=f"try: echo HOST | {program} get")
