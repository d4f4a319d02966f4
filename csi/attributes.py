"""Volume attributes and secrets: what a pod or a PersistentVolume says about a volume, as values.

Pure. Attributes come from the author of the pod, so nothing that an administrator must decide (hosts, plain http, limits) is
one. A key may stand bare (`reference`), under our prefix, or under the prefix of the ModelPack driver, whose users change one
line of a manifest to come here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from fuse.artifact.reference import Reference
from fuse.errors import InvalidReference, InvalidRequest
from fuse.filesystem.table import View
from fuse.spec import Native, Prefetch, Verify

PREFIX: Final = "csi.weightless.dev/"
MODELPACK_PREFIX: Final = "model.csi.modelpack.org/"

KNOWN: Final = ("reference", "prefetch", "verify", "native", "exclude-file-patterns", "exclude-model-weights")
_MIGRATION: Final = ("check-disk-quota", "type")
"""Of the ModelPack driver: how much is fetched is our cache's business, and there is one type of volume only."""
_KUBERNETES: Final = ("k8s.io", "kubernetes.io")
"""What kubelet and external-provisioner add of their own: `csi.storage.k8s.io/…`, `storage.kubernetes.io/…`."""

DOCKER_CONFIG: Final = ".dockerconfigjson"
_SECRET_KEYS: Final = frozenset({DOCKER_CONFIG, ".dockercfg", "username", "password"})

_PREFETCH: Final[tuple[Prefetch, Prefetch]] = ("full", "none")
_VERIFY: Final[tuple[Verify, Verify]] = ("lazy", "strict")
_NATIVE: Final[tuple[Native, Native]] = ("auto", "off")
_Choice = TypeVar("_Choice", bound=str)

_MAX_PATTERNS: Final = 1000
MAX_MAP_BYTES: Final = 4096
"""CSI: a map of strings holds at most 4 KiB; kubelet does not enforce it, so secrets of a real docker config may be larger."""
_MAX_SECRETS_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What the volume shows, and how eagerly it is fetched."""

    reference: str
    """Canonical: as `Reference` prints it."""
    view: View
    prefetch: Prefetch
    verify: Verify = "lazy"
    native: Native = "auto"


def parse(context: Mapping[str, str]) -> Attributes:
    """The attributes in a volume context. Raises InvalidRequest or InvalidReference, naming the key."""
    values = by_name(context)
    text = values.get("reference")
    if text is None:
        raise InvalidRequest(
            "the volume has no attribute reference",
            where="volumeAttributes",
            fix="set reference to host[:port]/repository[:tag][@digest]",
        )
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        raise InvalidReference(error.what, where=f"attribute reference {error.where}", fix=error.fix) from None
    view = View(
        exclude=_patterns(values.get("exclude-file-patterns")),
        exclude_weights=_boolean("exclude-model-weights", values.get("exclude-model-weights")),
    )
    return Attributes(
        reference=str(reference),
        view=view,
        prefetch=_choice("prefetch", values.get("prefetch"), _PREFETCH, "is not a way to prefetch"),
        verify=_choice("verify", values.get("verify"), _VERIFY, "is not a way to verify"),
        native=_choice("native", values.get("native"), _NATIVE, "does not say when"),
    )


def reference_in(context: Mapping[str, str]) -> str:
    """What stands there for a reference, checked or not, for who only tells of it; empty where nothing does."""
    keys = (f"{prefix}reference" for prefix in ("", PREFIX, MODELPACK_PREFIX))
    return next((context[key] for key in keys if key in context), "")


def check_secrets(secrets: Mapping[str, str]) -> dict[str, str]:
    """The secrets that are understood. Raises InvalidRequest for others; their values appear nowhere."""
    unknown = sorted(key for key in secrets if key not in _SECRET_KEYS and not _of_kubernetes(key))
    if unknown:
        raise InvalidRequest(
            f"unknown keys {_quoted(unknown)}",
            where="secrets",
            fix="use a secret with .dockerconfigjson, or with username and password",
        )
    known = {key: value for key, value in secrets.items() if key in _SECRET_KEYS}
    if sum(len(key) + len(value) for key, value in known.items()) > _MAX_SECRETS_BYTES:
        raise InvalidRequest("more than 1 MiB", where="secrets", fix="give only the credentials of this registry")
    return known


def by_name(context: Mapping[str, str], where: str = "volumeAttributes") -> dict[str, str]:
    """The values of all keys that are for us, by bare name; `where` they were written. Raises InvalidRequest."""
    if sum(len(key.encode()) + len(value.encode()) for key, value in context.items() if not _of_kubernetes(key)) > (
        MAX_MAP_BYTES
    ):
        raise InvalidRequest("more than 4 KiB of attributes", where=where, fix="shorten the patterns")
    found: dict[str, tuple[str, str]] = {}
    unknown: list[str] = []
    for key, value in sorted(context.items()):
        if _of_kubernetes(key):
            continue
        name = key.removeprefix(PREFIX).removeprefix(MODELPACK_PREFIX)
        if key.startswith(MODELPACK_PREFIX) and name in _MIGRATION:
            _check_migration(name, value)
            continue
        if name not in KNOWN:
            unknown.append(key)
            continue
        earlier = found.setdefault(name, (key, value))
        if earlier[1] != value:
            raise InvalidRequest(f"{earlier[0]!r} and {key!r} differ", where=where, fix=f"give {name} only once")
    if unknown:
        raise InvalidRequest(
            f"unknown attributes {_quoted(unknown)}",
            where=where,
            fix=f"known are {', '.join(KNOWN)}, bare or under {PREFIX} or {MODELPACK_PREFIX}",
        )
    return {name: value for name, (_, value) in found.items()}


def _of_kubernetes(key: str) -> bool:
    domain, slash, _ = key.partition("/")
    return bool(slash) and any(domain == own or domain.endswith(f".{own}") for own in _KUBERNETES)


def _check_migration(name: str, value: str) -> None:
    if name == "type" and value != "image":
        raise InvalidRequest(
            f"{value[:80]!r} is not a type of volume", where=f"attribute {MODELPACK_PREFIX}type", fix="use image"
        )
    if name == "check-disk-quota":
        _boolean(f"{MODELPACK_PREFIX}check-disk-quota", value)


def _boolean(name: str, text: str | None) -> bool:
    match (text or "false").strip().lower():
        case "true":
            return True
        case "false":
            return False
        case _:
            raise InvalidRequest(
                f"{text!r:.80} is neither true nor false", where=f"attribute {name}", fix='use "true" or "false"'
            )


def _choice(name: str, text: str | None, choices: tuple[_Choice, _Choice], what: str) -> _Choice:
    """The first where nothing is said."""
    if not text:
        return choices[0]
    for choice in choices:
        if text == choice:
            return choice
    raise InvalidRequest(f"{text!r:.80} {what}", where=f"attribute {name}", fix=f"use {choices[0]} or {choices[1]}")


def _patterns(text: str | None) -> tuple[str, ...]:
    if not text:
        return ()
    where = "attribute exclude-file-patterns"
    fix = 'give a JSON array of gitignore patterns, for example ["*.gguf", "!small.gguf"]'
    try:
        patterns = msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"not a JSON array of strings: {error}", where=where, fix=fix) from None
    if len(patterns) > _MAX_PATTERNS or any("\0" in pattern for pattern in patterns):
        raise InvalidRequest("too many patterns, or a NUL byte in one", where=where, fix=fix)
    return patterns


def _quoted(keys: list[str]) -> str:
    return ", ".join(repr(key[:80]) for key in keys[:10])
