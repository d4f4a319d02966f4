"""containerd's hosts.toml directories (containerd, docs/hosts.md): mirrors, certificates and headers of each registry.

Read on the privileged side, which may read keys; what comes out is a value. An administrator's mistake is an `InvalidConfig` that
names file and key: a mirror that is silently left out would be noticed in an outage only. Pure apart from reading files.
"""

from __future__ import annotations

import os
import posixpath
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from fuse.artifact.reference import DOCKER_HUB
from fuse.errors import InvalidConfig
from fuse.registry.access import Access, Capability, ClientCertificate, Credential, Endpoint

DOCKER_HUB_HOST: Final = "registry-1.docker.io"
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ALL: Final[tuple[Capability, ...]] = ("pull", "resolve", "push")
_KNOWN_CAPABILITIES: Final = frozenset({*_ALL, "referrers"})
_HOST_KEYS: Final = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
)
_ROOT_KEYS: Final = _HOST_KEYS | {"server", "host"}
_MAX_FILE_BYTES: Final = 1024 * 1024

_Credentials = Callable[[str], Credential | None]


def load_access(
    host: str, *, certs_dir: Path | None, plain_http: bool, credential: _Credentials, local_allowed: bool
) -> Access:
    """How the registry `host` (of a reference) may be reached: the mirrors of its hosts.toml in order, the origin last.

    `credential` is asked for each endpoint's own host, so a mirror never gets what is meant for the registry. `plain_http`
    is the administrator's word that registries without a hosts.toml have no TLS. It names none of them: they may lie on this
    machine, but not where only a named host may (link-local, the metadata services of clouds), for whoever writes a reference
    chooses the host. Raises InvalidConfig.
    """
    directory = _directory(certs_dir, host) if certs_dir is not None else None
    endpoints: tuple[Endpoint, ...]
    if directory is None:
        endpoints = (_default_origin(host, plain_http=plain_http),)
    elif (directory / "hosts.toml").is_file():
        endpoints = _File(directory / "hosts.toml", host).endpoints()
        plain_http = False  # the file says it
    else:
        endpoints = (_with_docker_certificates(_default_origin(host, plain_http=plain_http), directory),)
    with_credentials = tuple(_with_credential(endpoint, host, credential) for endpoint in endpoints)
    return Access(registry=host, endpoints=with_credentials, local_allowed=local_allowed or plain_http)


def _directory(certs_dir: Path, host: str) -> Path | None:
    """The first that exists of containerd's names: `host_port_`, `host:port`, `_default`."""
    name, colon, port = host.rpartition(":")
    escaped = f"{name}_{port}_" if colon and port.isdecimal() else host
    for candidate in dict.fromkeys((escaped, host, "_default")):
        if os.path.isdir(certs_dir / candidate):  # noqa: PTH112  (a host may be longer than a file's name: there is none then)
            return certs_dir / candidate
    return None


def _default_origin(host: str, *, plain_http: bool) -> Endpoint:
    if host == DOCKER_HUB:
        return Endpoint(url=f"https://{DOCKER_HUB_HOST}/v2", capabilities=_ALL, origin=True)
    # As containerd and docker: what listens on this machine itself needs no TLS.
    scheme = "http" if plain_http or urlsplit(f"//{host}").hostname in _LOCAL else "https"
    return Endpoint(url=f"{scheme}://{host}/v2", capabilities=_ALL, origin=True)


def _with_credential(endpoint: Endpoint, registry: str, credential: _Credentials) -> Endpoint:
    authority = urlsplit(endpoint.url).netloc
    mirror = _is_mirror(authority, registry)
    return _changed(
        endpoint,
        namespace=registry if mirror else "",
        credential=credential(authority if mirror else registry),
    )


def _is_mirror(authority: str, registry: str) -> bool:
    return authority != registry and not (registry == DOCKER_HUB and authority == DOCKER_HUB_HOST)


def _changed(endpoint: Endpoint, **changes: Any) -> Endpoint:
    values = {name: getattr(endpoint, name) for name in endpoint.__struct_fields__}
    return Endpoint(**(values | changes))


def _with_docker_certificates(endpoint: Endpoint, directory: Path) -> Endpoint:
    """docker's layout, which containerd reads where there is no hosts.toml: *.crt are authorities, *.cert and *.key pairs."""
    authorities = tuple(_text(path, str(path)) for path in sorted(directory.glob("*.crt")))
    pairs = tuple(
        ClientCertificate(_text(path, str(path)), _text(path.with_suffix(".key"), str(path)))
        for path in sorted(directory.glob("*.cert"))
    )
    return _changed(endpoint, ca_pems=authorities, client_certificates=pairs)


class _File:
    """One hosts.toml."""

    def __init__(self, path: Path, registry: str) -> None:
        self._path = path
        self._registry = registry

    def endpoints(self) -> tuple[Endpoint, ...]:
        try:
            content = tomllib.loads(_text(self._path, str(self._path)))
        except tomllib.TOMLDecodeError as error:
            raise InvalidConfig(f"not TOML: {error}", where=str(self._path)) from None
        self._no_others(content, _ROOT_KEYS, "")
        hosts = content.get("host", {})
        if not isinstance(hosts, dict):
            raise self._wrong("host", 'tables such as [host."https://mirror.example.com"]')
        mirrors = [
            self._endpoint(url, self._table(table, f'host."{url}"'), f'host."{url}".') for url, table in hosts.items()
        ]
        return (*mirrors, self._origin(content))

    def _origin(self, content: Mapping[str, Any]) -> Endpoint:
        settings = {key: value for key, value in content.items() if key in _HOST_KEYS}
        server = content.get("server", "")
        if not isinstance(server, str):
            raise self._wrong("server", "a URL")
        if server:
            return _changed(self._endpoint(server, settings, "", key="server"), origin=True)
        default = _default_origin(self._registry, plain_http=False)
        # Its own settings apply to the registry's usual address, which the file does not name.
        url = default.url.removesuffix("/v2")
        return _changed(self._endpoint(url, settings, ""), origin=True, named=False)

    def _endpoint(self, url: str, settings: Mapping[str, Any], prefix: str, *, key: str = "host") -> Endpoint:
        self._no_others(settings, _HOST_KEYS, prefix)
        override_path = self._boolean(settings, "override_path", prefix)
        return Endpoint(
            url=self._url(url, prefix.removesuffix(".") or key, override_path=override_path),
            capabilities=self._capabilities(settings, prefix),
            named=True,
            ca_pems=tuple(
                self._pem(path, f"{prefix}ca") for path in self._strings(settings.get("ca", []), f"{prefix}ca")
            ),
            client_certificates=self._clients(settings.get("client", []), f"{prefix}client"),
            skip_verify=self._boolean(settings, "skip_verify", prefix),
            headers=self._headers(settings.get("header", {}), f"{prefix}header"),
        )

    def _url(self, text: str, key: str, *, override_path: bool) -> str:
        url = text if text.startswith(("http://", "https://")) else f"https://{text}"
        try:
            parts = urlsplit(url)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or "@" in parts.netloc or parts.query or parts.fragment:
            raise self._wrong(key, "a URL of scheme, host, port and path")
        path = posixpath.normpath(parts.path).rstrip("/") if parts.path else ""
        if not override_path and not path.endswith("/v2"):
            path += "/v2"
        return f"{parts.scheme}://{parts.netloc}{path}"

    def _capabilities(self, settings: Mapping[str, Any], prefix: str) -> tuple[Capability, ...]:
        found = self._strings(settings.get("capabilities", list(_ALL)), f"{prefix}capabilities")
        if any(capability not in _KNOWN_CAPABILITIES for capability in found):
            raise self._wrong(f"{prefix}capabilities", "a list of pull, resolve, push")
        return cast("tuple[Capability, ...]", tuple(each for each in found if each in _ALL)) or _ALL

    def _clients(self, value: Any, key: str) -> tuple[ClientCertificate, ...]:
        """A path, a list of paths, or a list of [certificate, key] pairs; a single path holds both."""
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list):
            raise self._wrong(key, "a path, or a list of paths or [certificate, key] pairs")
        found = []
        for entry in entries:
            paths = self._strings(entry, key)
            if not 1 <= len(paths) <= 2:
                raise self._wrong(key, "a path, or a list of paths or [certificate, key] pairs")
            texts = [self._pem(path, key) for path in paths if path]
            found.append(ClientCertificate(texts[0], texts[1] if len(texts) > 1 else ""))
        return tuple(found)

    def _headers(self, value: Any, key: str) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        for name, content in self._table(value, key).items():
            text = ", ".join(self._strings(content, f"{key}.{name}"))
            if not (name.isascii() and name.replace("-", "").isalnum()) or not (text.isascii() and text.isprintable()):
                raise self._wrong(f"{key}.{name}", "a header's name and its value or values, in ASCII")
            found.append((name, text))
        return tuple(found)

    def _pem(self, path: str, key: str) -> str:
        return _text(self._path.parent / path, f"{self._path}, {key}")

    def _strings(self, value: Any, key: str) -> Sequence[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise self._wrong(key, "a string or a list of strings")
        return values

    def _boolean(self, settings: Mapping[str, Any], name: str, prefix: str) -> bool:
        value = settings.get(name, False)
        if not isinstance(value, bool):
            raise self._wrong(f"{prefix}{name}", "true or false")
        return value

    def _table(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(key, "a table")
        return value

    def _no_others(self, table: Mapping[str, Any], known: frozenset[str], prefix: str) -> None:
        for key in table:
            if key not in known:
                raise InvalidConfig(
                    f"unknown key {prefix}{key}", where=str(self._path), fix=f"known here: {', '.join(sorted(known))}"
                )

    def _wrong(self, key: str, expected: str) -> InvalidConfig:
        return InvalidConfig(f"{key}: expected {expected}", where=str(self._path))


def _text(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise InvalidConfig(f"{path} is larger than {_MAX_FILE_BYTES >> 20} MiB", where=where)
        return content.decode()
    except OSError as error:
        raise InvalidConfig(
            f"cannot read {path}: {error.strerror}", where=where, fix="correct the path, or let this user read it"
        ) from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path} is not text", where=where) from None
