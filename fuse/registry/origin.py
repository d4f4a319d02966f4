"""What is asked of a registry itself and of none of its mirrors: referrers, and what is pushed.

A chunk index vouches for bytes that come from anywhere, so it must not come from anywhere. Distribution-spec 1.1; one try a
call, for the caller knows whether it is worth another. Thread-safe, blocking.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote

from fuse.artifact.digest import Digest
from fuse.artifact.manifest import OCI_INDEX
from fuse.artifact.reference import Reference
from fuse.errors import (
    Corrupt,
    Forbidden,
    InvalidArtifact,
    InvalidConfig,
    Unauthenticated,
    Unavailable,
    WeightlessError,
)
from fuse.registry.access import Access
from fuse.registry.control import ControlReply
from fuse.registry.conversation import Conversation
from fuse.registry.reply import TooLarge
from fuse.registry.repository import MANIFEST_TYPES, MAX_MANIFEST_BYTES, Manifest
from fuse.registry.route import Route
from fuse.registry.transport import Transport

_UNKNOWN: Final = frozenset({400, 404, 405, 501})
"""How registries without the referrers API answer a request for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferrersList:
    """A list of referrers as the registry sent it."""

    content: bytes
    media_type: str
    filtered: bool
    """It says that it has left out other types than the one that was asked for."""


class Origin:
    """The repository of `reference` at the registry itself."""

    def __init__(self, reference: Reference, access: Access, transport: Transport, *, push: bool = False) -> None:
        """Raises InvalidConfig when `access` names no origin, or none that may be pushed to."""
        endpoint = next((endpoint for endpoint in reversed(access.endpoints) if endpoint.origin), None)
        if endpoint is None or (push and "push" not in endpoint.capabilities):
            raise InvalidConfig(
                f"the registry itself may not be {'pushed to' if push else 'asked'}",
                where=reference.host,
                fix="see server and capabilities in hosts.toml",
            )
        self.reference = reference
        self.authentic: Final = endpoint.url.startswith("https://") and not endpoint.skip_verify
        """Whether what it says is known to be its own word: TLS, with a certificate that was checked."""
        self._transport = transport
        self._conversation = Conversation(
            transport,
            access,
            endpoint,
            reference.repository,
            reference.name,
            actions="pull,push" if push else "pull",
        )

    # ---- reading ----

    def referrers(self, subject: Digest, artifact_type: str) -> ReferrersList | None:
        """The list of manifests about `subject`, perhaps with others than of this type among them; None when there is no API.

        Only the first page: whoever filters has few. Raises what a registry raises.
        """
        path = f"referrers/{subject}?artifactType={quote(artifact_type, safe='')}"
        reply, _ = self._conversation.ask(partial(self._send, "GET", None), path, {"Accept": OCI_INDEX})
        if reply.status in _UNKNOWN:
            reply.close()
            return None
        filtered = "artifactType" in reply.header("OCI-Filters-Applied")
        found = self._document(reply, f"the referrers of {subject}", None)
        return ReferrersList(content=found.content, media_type=found.media_type, filtered=filtered)

    def manifest(self, target: str) -> Manifest | None:
        """A manifest by tag or digest (which it then matches); None when there is none. Raises also Corrupt."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        reply, _ = self._conversation.ask(partial(self._send, "GET", None), f"manifests/{target}", headers)
        if reply.status == 404:
            reply.close()
            return None
        return self._document(reply, target, Digest.parse(target) if ":" in target else None)

    def blob(self, digest: Digest, size: int) -> bytes:
        """A whole blob, which matches its digest. The caller bounds `size`. Raises what a registry raises, Corrupt."""
        where = self._where(str(digest))
        reply, _ = self._conversation.ask(partial(self._send, "GET", None), f"blobs/{digest}", {})
        if reply.status != 200:
            raise self._conversation.failure(reply, where)
        content = _body(reply, size, where)
        if len(content) != size or not digest.matches(content):
            raise Corrupt("the blob does not match its digest", where=where)
        return content

    def _document(self, reply: ControlReply, target: str, pinned: Digest | None) -> Manifest:
        where = self._where(target)
        if reply.status != 200:
            raise self._conversation.failure(reply, where)
        media_type = reply.header("Content-Type").partition(";")[0].strip().lower()
        content = _body(reply, MAX_MANIFEST_BYTES, where)
        if pinned is not None and not pinned.matches(content):
            raise Corrupt("the manifest does not match its digest", where=where)
        return Manifest(content=content, media_type=media_type, digest=pinned or Digest.of(content))

    # ---- pushing ----

    def push_blob(self, content: bytes) -> bool:
        """Makes sure that the registry has this blob; whether it had to be sent. Raises Forbidden where it may not."""
        digest = Digest.of(content)
        where = self._where(str(digest))
        reply, _ = self._conversation.ask(partial(self._send, "HEAD", None), f"blobs/{digest}", {})
        there = reply.status == 200
        reply.close()
        if there:
            return False
        reply, route = self._conversation.ask(partial(self._send, "POST", b""), "blobs/uploads/", {})
        location = reply.header("Location")
        if reply.status != 202:
            raise self._refused(reply, where)
        reply.close()
        if not location:
            raise Unavailable("the registry begins an upload without saying where", where=where)
        target = f"{location}{'&' if '?' in location else '?'}digest={quote(str(digest), safe='')}"
        headers = {"Content-Type": "application/octet-stream"}
        reply, _ = self._conversation.follow(partial(self._send, "PUT", content), route, target, headers)
        if reply.status not in (201, 204):
            raise self._refused(reply, where)
        reply.close()
        return True

    def push_manifest(self, target: str, content: bytes, media_type: str) -> bool:
        """Stores a manifest under a tag or its digest; whether the registry says that it lists it as a referrer.

        Raises Forbidden where pushing is not allowed.
        """
        send = partial(self._send, "PUT", content)
        reply, _ = self._conversation.ask(send, f"manifests/{target}", {"Content-Type": media_type})
        if reply.status not in (200, 201, 202):
            raise self._refused(reply, self._where(target))
        processed = bool(reply.header("OCI-Subject"))
        reply.close()
        return processed

    def _refused(self, reply: ControlReply, where: str) -> WeightlessError:
        error = self._conversation.failure(reply, where)
        if isinstance(error, Forbidden | Unauthenticated):
            return Forbidden(
                f"the registry does not let these credentials push: {error.what}",
                where=where,
                fix="log in as somebody who may push to this repository",
            )
        if reply.status in (404, 405):
            return InvalidArtifact(
                f"the registry takes no pushes here: {error.what}",
                where=where,
                fix="push to the registry itself, not to a read-only copy of it",
            )
        return error

    def _where(self, target: str) -> str:
        return f"{self.reference.name}{'@' if ':' in target else ':'}{target}"

    def _send(self, method: str, content: bytes | None, route: Route, headers: dict[str, str]) -> ControlReply:
        return self._transport.control.send(route, method, headers, content)


def _body(reply: ControlReply, limit: int, where: str) -> bytes:
    try:
        return reply.read(limit)
    except TooLarge:
        raise InvalidArtifact(f"more than the {limit} bytes that are expected", where=where) from None
    finally:
        reply.close()
