"""Which credentials are meant for an image: kubelet's patterns (kubelet-config.v1, `matchImages`), and docker's keys among them.

A pattern is `host[:port][/path]`. Each label of the host may have wildcards, which never cross a dot; the port must be the same;
the path must begin the image's. One thing is stricter than in kubelet: a path ends where a component ends, so what is meant for
`registry/team` is not shown for `registry/team-b`. An image here is `host[:port]/repository`, without tag and digest. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from fuse.artifact.reference import DOCKER_HUB

_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_API_VERSIONS: Final = ("/v1", "/v2")
"""docker writes some of its keys with the path of the API, which is no part of a repository."""


def matches(pattern: str, image: str) -> bool:
    """Whether `pattern` means `image`."""
    wanted_host, wanted_path = _split(pattern)
    host, path = _split(image)
    wanted_labels, wanted_port = _labels(wanted_host)
    labels, port = _labels(host)
    return (
        wanted_port == port
        and len(wanted_labels) == len(labels)
        and (path == wanted_path or path.startswith(f"{wanted_path}/") or not wanted_path)
        and all(fnmatchcase(label, _in_python(wanted)) for label, wanted in zip(labels, wanted_labels, strict=True))
    )


def of_image(patterns: Iterable[str], image: str) -> list[str]:
    """Those that mean the image, the most specific first: longer paths before shorter ones, names before wildcards."""
    return sorted((pattern for pattern in patterns if matches(pattern, image)), key=_generality)


def canonical_host(host: str) -> str:
    """Docker Hub has several names; they are one registry."""
    return DOCKER_HUB if host in _HUB_NAMES else host


def _generality(pattern: str) -> tuple[int, int, int]:
    host, path = _split(pattern)
    return -len(path), sum(host.count(sign) for sign in "*?["), -len(host)


def _split(text: str) -> tuple[str, str]:
    """Host and path, without what docker writes around them."""
    _, scheme, rest = text.partition("://")
    host, _, path = (rest if scheme else text).partition("/")
    path = f"/{path}".rstrip("/")
    for version in _API_VERSIONS:
        if path == version or path.startswith(f"{version}/"):
            path = path.removeprefix(version)
            break
    return canonical_host(host.lower()), path


def _labels(host: str) -> tuple[list[str], str]:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return name.strip("[]").split(".") if name.startswith("[") else name.split("."), port


def _in_python(label: str) -> str:
    """Go says `[^a]` where Python says `[!a]`."""
    return label.replace("[^", "[!")
