"""Credentials as docker keeps them: config.json, its credential helpers, and Kubernetes secrets of the same format.

A helper is a program that the administrator installed; secrets of pods may name none. Keys of `auths` are hosts, or patterns as
in `matching`. An image is `host[:port]/repository`, or the host alone. No error says more than which file, host or helper it was
about.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from fuse.artifact.reference import DOCKER_HUB
from fuse.credentials.matching import canonical_host, of_image
from fuse.credentials.program import ProgramFailed, run
from fuse.errors import InvalidConfig, InvalidRequest, Unavailable, WeightlessError
from fuse.registry.access import Credential

HELPER_TIMEOUT_S: Final = 10.0
DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
DOCKERCONFIGJSON: Final = ".dockerconfigjson"
DOCKERCFG: Final = ".dockercfg"
"""The older form of it, which Kubernetes still makes: what is in `auths`, alone."""
_NAMES: Final = ("config.json", DOCKERCONFIGJSON)
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND: Final = "credentials not found in native keychain"
_IDENTITY_USER: Final = "<token>"
_MAX_FILE_BYTES: Final = 1024 * 1024
_FIX_IN_FILE: Final = "log in anew with docker login, or point $DOCKER_CONFIG to another directory"
_FIX_IN_POD: Final = "make the secret anew: kubectl create secret docker-registry"

_KindT = TypeVar("_KindT")


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
    def load(cls, path: Path | None) -> DockerConfig:
        """The file at `path`, or in this directory (as `config.json`, or as `.dockerconfigjson`, its name in a mounted secret).

        None: in $DOCKER_CONFIG, else in ~/.docker. What does not exist is empty. Raises InvalidConfig.
        """
        path = location(path)
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return cls(_Content(), str(path))
        except OSError as error:
            fix = "let this user read it, or point $DOCKER_CONFIG (docker-config on a node) elsewhere"
            raise InvalidConfig(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from None
        content = _parse(text)
        if content is None:
            raise InvalidConfig(
                "not a docker config (JSON with auths, credHelpers, credsStore)", where=str(path), fix=_FIX_IN_FILE
            )
        return cls(content, str(path))

    def credential(self, image: str) -> Credential | None:
        """What to show for an image, in docker's order: a helper for the host, else the global one, else what stands in the file.

        Raises InvalidConfig for a helper that does not work, Unavailable for one that takes longer than HELPER_TIMEOUT_S.
        """
        return self.helped(image) or self.stored(image)

    def helped(self, image: str, cancel: threading.Event | None = None) -> Credential | None:
        """What the helper says that is named for the host, else the global one. Raises as `credential`, and Cancelled."""
        host = canonical_host(image.partition("/")[0])
        helpers = self._content.cred_helpers or {}
        named = of_image(helpers, host)
        helper = helpers[named[0]] if named else self._content.creds_store
        return _ask_helper(helper, host, self._where, cancel) if helper else None

    def stored(self, image: str) -> Credential | None:
        """What stands in the file itself, without asking any helper. Raises InvalidConfig."""
        auths = self._content.auths or {}
        for key in of_image(auths, image):
            found = self._credential_of(auths[key], key)
            if found is not None:
                return found
        return None

    def _credential_of(self, entry: _Entry, key: str) -> Credential | None:
        username, password = entry.username, entry.password
        if entry.auth:
            written = entry.auth.replace("\n", "").replace("\r", "")  # base64 wraps what is long, and Go does not mind
            try:
                username, colon, password = base64.b64decode(written, validate=True).decode().partition(":")
            except ValueError:  # binascii.Error and UnicodeDecodeError are some, and there is one for what is not ASCII
                colon = ""
            if not colon:
                raise InvalidConfig(
                    f"auths.{key}.auth is not base64 of user:password", where=self._where, fix=_FIX_IN_FILE
                )
            password = password.rstrip("\0")  # as docker: some tools wrote C strings
        if not re.fullmatch(r"[!-~]*", entry.registrytoken):  # it becomes a header
            raise InvalidConfig(f"auths.{key}.registrytoken is no token", where=self._where, fix=_FIX_IN_FILE)
        credential = Credential(
            username=username,
            password=password,
            identity_token=entry.identitytoken,
            registry_token=entry.registrytoken,
        )
        return credential if credential != Credential() else None


def location(path: Path | None) -> Path:
    """Where `DockerConfig.load` looks; whether anything is there is another matter."""
    if path is None:
        variable = os.environ.get("DOCKER_CONFIG")
        path = Path(variable) if variable else Path("~/.docker").expanduser()
    if path.is_file():
        return path
    return next((file for name in _NAMES if (file := path / name).exists()), path / _NAMES[0])


def from_secrets(secrets: Mapping[str, str], *, registry: str = "") -> Callable[[str], Credential | None]:
    """The credentials in a Kubernetes secret, by image: `.dockerconfigjson`, `.dockercfg`, or `username` and `password`.

    `username` and `password` name no host: they are for `registry`, or, when that is not given, for every host that is asked
    about.
    Raises InvalidRequest.
    """
    names = sorted(secrets)
    if not names:
        return lambda _image: None
    fix = f"give {DOCKERCONFIGJSON}, or username and password"
    for key, parse in ((DOCKERCONFIGJSON, _parse), (DOCKERCFG, _parse_older)):
        if key in secrets:
            content = parse(secrets[key].encode())
            if content is None:
                raise InvalidRequest("is not a docker config (JSON with auths)", where=f"secret {key}", fix=fix)
            # Helpers in a pod's secret would be programs that the pod chooses and root runs.
            return _checked(DockerConfig(_Content(auths=content.auths), f"secret {key}"))
    if not secrets.get("username") or "password" not in secrets:
        raise InvalidRequest(f"no usable key among {', '.join(names)[:200]}", where="secrets", fix=fix)
    credential = Credential(username=secrets["username"], password=secrets["password"])
    only = canonical_host(registry)
    return lambda image: credential if not only or canonical_host(image.partition("/")[0]) == only else None


def _checked(config: DockerConfig) -> Callable[[str], Credential | None]:
    def credential(image: str) -> Credential | None:
        try:
            return config.stored(image)
        except InvalidConfig as error:
            raise InvalidRequest(error.what, where=error.where, fix=_FIX_IN_POD) from None

    return credential


def _parse(text: bytes) -> _Content | None:
    return _decoded(text, _Content)


def _parse_older(text: bytes) -> _Content | None:
    auths = _decoded(text, dict[str, _Entry])
    return None if auths is None else _Content(auths=auths)


def _decoded(text: bytes, kind: type[_KindT]) -> _KindT | None:
    if len(text) > _MAX_FILE_BYTES:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Its message could quote a secret.
        return None


def _ask_helper(name: str, host: str, where: str, cancel: threading.Event | None) -> Credential | None:
    """`docker-credential-NAME get`: the host on standard input, JSON on standard output (docker/docker-credential-helpers)."""
    if not _HELPER_NAME.fullmatch(name):
        raise InvalidConfig(
            "the name of a credential helper is not usable", where=where, fix="mend credsStore and credHelpers there"
        )
    program = f"docker-credential-{name}"
    asked = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    try:
        code, output = run([program, "get"], asked.encode(), limit_s=HELPER_TIMEOUT_S, cancel=cancel)
    except ProgramFailed as failure:
        if failure.temporary:
            fix = f"see what it waits for: echo {host} | {program} get"
            raise Unavailable(f"{program} {failure.how}", where=where, fix=fix) from None
        fix = "install it or remove it from the config"
        raise InvalidConfig(f"{program} {failure.how}", where=where, fix=fix) from None
    return _helper_credential(program, code, output, where)


def _helper_credential(program: str, code: int, output: bytes, where: str) -> Credential | None:
    if code != 0:
        if _NOT_FOUND in output[:4096].decode(errors="replace"):
            return None
        raise _helper_failed(program, f"ended with code {code}", where)
    answer = _decoded(output, _HelperAnswer)
    if answer is None:
        raise _helper_failed(program, "did not answer with credentials", where)
    if not answer.username and not answer.secret:
        return None
    if answer.username == _IDENTITY_USER:
        return Credential(identity_token=answer.secret)
    return Credential(username=answer.username, password=answer.secret)


def _helper_failed(program: str, how: str, where: str) -> WeightlessError:
    return InvalidConfig(f"{program} {how}", where=where, fix=f"try: echo HOST | {program} get")
