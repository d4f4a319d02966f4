"""References to artifacts: `host[:port]/repository[:tag][@digest]`.

Grammar: distribution/reference's, which docker, containerd and kubelet share. A digest, when there is one, wins over the tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fuse.artifact.digest import Digest
from fuse.errors import InvalidArtifact, InvalidReference

DOCKER_HUB: Final = "docker.io"
_MAX_NAME: Final = 255
_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_USERINFO = re.compile(r"^([a-zA-Z]*://)?[^/@]*:[^/@]*@(?!sha\d+:)")
_EXPECTED: Final = "expected host[:port]/repository[:tag][@digest], for example registry.example.com/models/llama:v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed reference. At least one of `tag` and `digest` is set."""

    host: str
    repository: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Applies docker's defaults (`docker.io`, `library/`, `latest`). Raises InvalidReference."""
        shown = _shown(text)
        if not text.strip():
            raise InvalidReference(
                "the reference is empty", where=repr(shown), fix=f"{_EXPECTED}; was a variable left unset?"
            )
        if text != text.strip():
            raise InvalidReference(
                "there is white space around the reference", where=repr(shown), fix="leave the white space out"
            )
        if "://" in text:
            raise InvalidReference(
                "a reference has no scheme", where=repr(shown), fix=f"leave out {shown.partition('://')[0]}://"
            )
        name, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except InvalidArtifact as error:
                raise InvalidReference(error.what, where=repr(shown), fix=error.fix) from None
        tag = None
        head, colon, tail = name.rpartition(":")
        if colon and "/" not in tail and (head or digest is None):
            name, tag = head, tail
            if not _TAG.fullmatch(tag):
                raise InvalidReference(f"{tag[:140]!r} is not a tag", where=repr(shown), fix=_EXPECTED)
        host, slash, repository = name.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost" or host != host.lower()):
            host, repository = DOCKER_HUB, name
        if host in (DOCKER_HUB, "index.docker.io"):
            host = DOCKER_HUB
            repository = repository if "/" in repository else f"library/{repository}"
        if not _HOST.fullmatch(host) or not _port_is_valid(host):
            raise InvalidReference(f"{_shown(host)!r} is not a registry host", where=repr(shown), fix=_EXPECTED)
        if len(repository) > _MAX_NAME or not _REPOSITORY.fullmatch(repository):
            raise InvalidReference(f"{_shown(repository)!r} is not a repository name", where=repr(shown), fix=_EXPECTED)
        if tag is None and digest is None:
            tag = "latest"
        return cls(host=host, repository=repository, tag=tag, digest=digest)

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest else str(self.tag)

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    def pinned(self, digest: Digest) -> Reference:
        return Reference(host=self.host, repository=self.repository, tag=self.tag, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


def _shown(text: str) -> str:
    """For errors: not long, and without the password of somebody who took a reference for a URL."""
    text = _USERINFO.sub(r"\1…@", text[:400])
    return text if len(text) <= 160 else text[:157] + "..."


def _port_is_valid(host: str) -> bool:
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    return not port or 0 < int(port) < 65536
