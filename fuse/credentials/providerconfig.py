"""kubelet's CredentialProviderConfig (kubelet.config.k8s.io/v1): which programs give credentials, and for which images.

The file that `--image-credential-provider-config` names on a node means here what it means to kubelet: YAML or JSON, or a
directory of such files. What kubelet refuses is refused; fields that are not known are ignored, for a newer kubelet may have
them. Reads files, and decides nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from fuse.errors import InvalidConfig

if TYPE_CHECKING:
    import yaml

CacheType = Literal["Token", "ServiceAccount"]
_CONFIG_VERSIONS: Final = frozenset(f"kubelet.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
PROTOCOL: Final = "credentialprovider.kubelet.k8s.io/v1"
_PROTOCOLS: Final = frozenset({PROTOCOL, f"{PROTOCOL}beta1", f"{PROTOCOL}alpha1"})
_SUFFIXES: Final = (".json", ".yaml", ".yml")
_MAX_FILE_BYTES: Final = 1024 * 1024
_NAME = re.compile(r"[^/\s]+")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_FIX: Final = "it is kubelet's file of --image-credential-provider-config: see what kubelet says of it"


class Variable(msgspec.Struct, frozen=True):
    """Of the program's environment."""

    name: str
    value: str

    def __repr__(self) -> str:
        return f"Variable({self.name!r}, …)"


class TokenAttributes(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """KEP-4412: the program gets a token of the pod's ServiceAccount."""

    service_account_token_audience: str
    require_service_account: bool
    cache_type: CacheType = "Token"
    required_service_account_annotation_keys: tuple[str, ...] = ()
    optional_service_account_annotation_keys: tuple[str, ...] = ()


class Provider(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One program. Equal ones give equal answers, so it is a part of the key of what is remembered."""

    name: str
    match_images: tuple[str, ...]
    default_cache_duration: str
    api_version: str
    args: tuple[str, ...] = ()
    env: tuple[Variable, ...] = ()
    token_attributes: TokenAttributes | None = None

    @property
    def default_cache_s(self) -> float:
        return parse_duration(self.default_cache_duration)


class _File(msgspec.Struct, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    providers: tuple[Provider, ...]


def load(path: Path) -> tuple[Provider, ...]:
    """The providers of a file, or of all files of a directory by their names, in their order. Raises InvalidConfig."""
    try:
        files = _files(path)
    except OSError as error:  # it is being swapped by kubelet, or not for this user
        raise _unreadable(error, str(path)) from None
    found = [provider for file in files for provider in _load_file(file)]
    if not found:
        raise InvalidConfig("names no provider", where=str(path), fix=_FIX)
    names = [provider.name for provider in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidConfig(f"names the provider {twice!r} twice", where=str(path), fix=_FIX)
    return tuple(found)


def parse_duration(text: str) -> float:
    """Seconds in Go's notation: `12h`, `1h30m`, `0`. Raises ValueError."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r:.40} is not a duration such as 12h or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _load_file(path: Path) -> tuple[Provider, ...]:
    import yaml  # see _loader

    where = str(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise InvalidConfig("is larger than 1 MiB", where=where, fix=_FIX)
        parsed = msgspec.convert(yaml.load(text, _loader()), _File)  # noqa: S506  (a safe one)
    except OSError as error:
        raise _unreadable(error, where) from None
    except msgspec.ValidationError as error:
        raise InvalidConfig(str(error)[:300], where=where, fix=_FIX) from None
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError):
        # What they say quotes the file, whose environment variables may be secrets. Those that are no YAMLError come of tags
        # (`!!int x`), which PyYAML believes.
        raise InvalidConfig("is neither YAML nor JSON", where=where, fix=_FIX) from None
    if parsed.api_version not in _CONFIG_VERSIONS or parsed.kind != "CredentialProviderConfig":
        what = f"is a {parsed.kind!r:.80} of {parsed.api_version!r:.80}"
        raise InvalidConfig(what, where=where, fix="use a CredentialProviderConfig of kubelet.config.k8s.io/v1")
    for provider in parsed.providers:
        fault = _fault(provider)
        if fault:
            raise InvalidConfig(f"provider {provider.name!r:.80}: {fault}", where=where, fix=_FIX)
    return parsed.providers


def _files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        return (path,)
    return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())


def _unreadable(error: OSError, where: str) -> InvalidConfig:
    fix = "correct provider-config, or mount kubelet's file there"
    return InvalidConfig(f"cannot be read: {error.strerror}", where=where, fix=fix)


@cache
def _loader() -> type[yaml.SafeLoader]:
    """Takes a date for text, as kubelet's parser does."""
    import yaml  # takes longer to import than most of this process, and most nodes have no such file

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _fault(provider: Provider) -> str:
    """What kubelet would not accept either; empty when there is nothing."""
    try:
        _ = provider.default_cache_s
    except ValueError as error:
        return f"defaultCacheDuration: {error}"
    if not _NAME.fullmatch(provider.name) or provider.name in (".", ".."):
        return "name must be the name of a file in the bin directory"
    if not all(map(_is_passable, (provider.name, *provider.args, *(each.value for each in provider.env)))):
        return "args and env must be text"
    if any(not each.name or "=" in each.name or not _is_passable(each.name) for each in provider.env):
        return "env has a name that no variable can have"
    if not provider.match_images or not all(provider.match_images):
        return "matchImages is empty"
    if provider.api_version not in _PROTOCOLS:
        return f"apiVersion {provider.api_version!r:.80} is not known"
    attributes = provider.token_attributes
    if attributes is None:
        return ""
    if provider.api_version != PROTOCOL:
        return f"tokenAttributes need apiVersion {PROTOCOL}"
    if not attributes.service_account_token_audience:
        return "tokenAttributes.serviceAccountTokenAudience is empty"
    if attributes.required_service_account_annotation_keys and not attributes.require_service_account:
        return "requiredServiceAccountAnnotationKeys need requireServiceAccount"
    return ""


def _is_passable(text: str) -> bool:
    """Whether a program can be given it."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
