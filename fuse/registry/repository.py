"""One repository through the endpoints that its registry may be reached by: manifests, small blobs, ranges of large ones.

Endpoints are tried in order, mirrors before the origin; whatever goes wrong at a mirror, the next one is asked, and the last
one's word counts. Content is checked against its digest where there is one. Thread-safe, blocking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urlsplit

import structlog
import tenacity

from fuse import tracing
from fuse.artifact.digest import Digest
from fuse.artifact.reference import Reference
from fuse.errors import (
    AddressRefused,
    Cancelled,
    Corrupt,
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    Unavailable,
    WeightlessError,
)
from fuse.registry.access import Access, Capability, Endpoint
from fuse.registry.blobs import BlobStream, promised
from fuse.registry.control import ControlReply
from fuse.registry.conversation import Conversation
from fuse.registry.ranges import RangeReply
from fuse.registry.reply import TooLarge
from fuse.registry.route import Route
from fuse.registry.transport import Transport

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
TRIES: Final = 3
MAX_RETRY_AFTER_S: Final = 30.0

T = TypeVar("T")
_log = structlog.get_logger()
_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as the registry sent it; its JSON has not been looked at."""

    content: bytes
    media_type: str
    """From Content-Type, without parameters, in lower case."""
    digest: Digest


class Repository:
    """The repository of `reference`, reached as `access` says."""

    def __init__(self, reference: Reference, access: Access, transport: Transport) -> None:
        self.reference = reference
        self._transport = transport
        self._conversations = [
            Conversation(transport, access, endpoint, reference.repository, reference.name)
            for endpoint in access.endpoints
        ]

    def manifest(
        self, target: str, *, expected: Digest | None = None, cancel: threading.Event | None = None
    ) -> Manifest:
        """The manifest with this tag or digest. With `expected`, or when `target` is a digest, its content must match it.

        Raises NotFound, Unauthenticated, Forbidden, AddressRefused, Unavailable, Corrupt, InvalidArtifact (too large), Cancelled.
        """
        pinned = expected or (Digest.parse(target) if ":" in target else None)
        # Also by digest: whoever gets the manifest has proven that these credentials may pull it (see `exists`).
        attempt = partial(self._manifest, target=target, pinned=pinned)
        return _retried(lambda: self._proven(attempt, lambda found: found.digest), cancel)

    def exists(self, digest: Digest, *, cancel: threading.Event | None = None) -> None:
        """Returns if the manifest may be pulled with these credentials, else raises as `manifest` does.

        This is the proof that a publish needs although its content may be cached. Only hosts with the capability
        `resolve` are asked: the administrator trusts those to speak for the registry. A mirror's refusal is not the last word,
        and neither is its yes if it says it to anybody (`_proven`).
        """
        _retried(lambda: self._proven(partial(self._head, digest=digest), lambda _: digest), cancel)

    def small_blob(self, digest: Digest, size: int, *, limit: int, cancel: threading.Event | None = None) -> bytes:
        """A whole blob that matches its digest. Raises InvalidArtifact if `size` is more than `limit`, else as `manifest`."""
        if not 0 <= size <= limit:
            raise InvalidArtifact(
                f"a blob of {size} bytes where at most {limit} are allowed", where=f"{self.reference.name}@{digest}"
            )
        return _retried(lambda: self._first("pull", partial(self._small_blob, digest=digest, size=size)), cancel)

    def open_blob(
        self,
        digest: Digest,
        size: int,
        first: int,
        length: int,
        *,
        lane: object = None,
        avoid: Collection[str] = (),
        urgent: bool = True,
    ) -> BlobStream:
        """Asks for `length` bytes from offset `first` of a blob of `size` bytes. One try at each endpoint, no waiting between.

        `lane` names the caller's line of work: connections are kept for it, so two threads that read at the same time
        should use two (`Transport.close_lane` ends one); by default each thread is its own. `avoid`: mirrors (by
        `BlobStream.endpoint`) that are not asked, as they gave wrong bytes. `urgent`: a reader waits; what is not may be put
        off instead of being asked of the registry in a mirror's place (`fuse.registry.health`): raises Later then. Raises else
        as `manifest`; Unavailable may carry `retry_after_s`.
        """
        if first < 0 or first + length > size or length < min(1, size):
            raise ValueError(f"bytes {first}+{length} are not within {size}")
        lane = threading.get_ident() if lane is None else lane
        attempt = partial(self._open, digest=digest, size=size, first=first, length=length, lane=lane, urgent=urgent)
        return self._first("pull", attempt, avoid, urgent=urgent)

    # ---- one endpoint ----

    def _manifest(self, conversation: Conversation, *, target: str, pinned: Digest | None) -> Manifest:
        where = self._where(target, conversation)
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        reply, _ = conversation.ask(partial(self._control, "GET"), f"manifests/{target}", headers)
        if reply.status != 200:
            raise conversation.failure(reply, where)
        try:
            content = reply.read(MAX_MANIFEST_BYTES)
        except TooLarge:
            raise InvalidArtifact(f"the manifest is larger than {MAX_MANIFEST_BYTES >> 20} MiB", where=where) from None
        finally:
            reply.close()
        self._check_manifest(content, reply.header("Docker-Content-Digest"), pinned, where)
        media_type = reply.header("Content-Type").partition(";")[0].strip().lower()
        return Manifest(content=content, media_type=media_type, digest=pinned or Digest.of(content))

    def _check_manifest(self, content: bytes, announced: str, pinned: Digest | None, where: str) -> None:
        if pinned is not None and not pinned.matches(content):
            raise Corrupt(
                f"the manifest does not match its digest (it has {Digest.of(content, pinned.algorithm)})", where=where
            )
        if announced:
            try:
                agrees = Digest.parse(announced.strip()).matches(content)
            except InvalidArtifact as error:
                raise Corrupt(f"Docker-Content-Digest: {error.what}", where=where) from None
            if not agrees:
                raise Corrupt("the manifest does not match its Docker-Content-Digest header", where=where)

    def _head(self, conversation: Conversation, *, digest: Digest) -> None:
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        path = f"manifests/{digest}"
        reply, _ = conversation.ask(partial(self._control, "HEAD"), path, headers)
        if reply.status in (400, 405, 501):
            # Some do not know HEAD here.
            reply.close()
            reply, _ = conversation.ask(partial(self._control, "GET"), path, headers)
        if reply.status != 200:
            raise conversation.failure(reply, self._where(str(digest), conversation))
        reply.close()

    def _small_blob(self, conversation: Conversation, *, digest: Digest, size: int) -> bytes:
        where = self._where(str(digest), conversation)
        reply, route = conversation.ask(partial(self._control, "GET"), f"blobs/{digest}", {})
        if reply.status != 200:
            raise self._blob_failure(conversation, reply, route, where)
        try:
            content = reply.read(size)
        except TooLarge:
            raise Corrupt(f"the blob is longer than the {size} bytes of the manifest", where=where) from None
        finally:
            reply.close()
        if len(content) != size or not digest.matches(content):
            raise Corrupt("the blob does not match its digest", where=where)
        return content

    def _open(
        self,
        conversation: Conversation,
        *,
        digest: Digest,
        size: int,
        first: int,
        length: int,
        lane: object,
        urgent: bool,
    ) -> BlobStream:
        where = self._where(str(digest), conversation)
        endpoint, redirects = conversation.endpoint, self._transport.redirects
        mirror = not endpoint.origin
        whole = length == size  # no Range then: a peer-to-peer proxy serves such a request best
        headers = {} if whole else {"Range": f"bytes={first}-{first + length - 1}"}
        send = partial(self._range, lane)
        key = (endpoint.url, self.reference.repository, endpoint.credential, digest)
        route = redirects.get(key)
        reply = self._from_remembered(send, route, headers) if route is not None else None
        if reply is None or route is None:
            redirects.forget(key)
            reply, route = conversation.ask(send, f"blobs/{digest}", headers, urgent=urgent)
            if reply.status not in (200, 206):
                raise self._blob_failure(conversation, reply, route, where)
            # A mirror decides anew each time whence something comes; and a peer-to-peer one has to see each request, by one URL.
            if not mirror and not conversation.is_own(route):
                redirects.put(key, route)
        try:
            start, count = promised(reply, size, first, length, where, mirror=mirror)
        except WeightlessError:
            redirects.forget(key)
            reply.close()
            raise
        return BlobStream(
            reply,
            start=start,
            length=count,
            source=route.authority,
            endpoint=endpoint.url,
            origin=endpoint.origin,
            where=f"{self.reference.name}@{digest}",
            failed=partial(self._stream_failed, endpoint, key),
        )

    def _from_remembered(
        self, send: Callable[[Route, Mapping[str, str]], RangeReply], route: Route, headers: Mapping[str, str]
    ) -> RangeReply | None:
        """The answer of where the last request was redirected to; None when that has expired or gone."""
        try:
            reply = send(route, headers)
        except (Unavailable, AddressRefused):
            return None
        if reply.status in (200, 206):
            return reply
        reply.close()
        return None

    def _stream_failed(self, endpoint: Endpoint, key: Hashable) -> None:
        self._transport.redirects.forget(key)
        self._transport.health.note_failure(endpoint)

    def _blob_failure(
        self, conversation: Conversation, reply: ControlReply | RangeReply, route: Route, where: str
    ) -> WeightlessError:
        if reply.status == 416:
            reply.close()
            return Corrupt("the blob is shorter than the manifest says", where=where, fix="push the artifact again")
        error = conversation.failure(reply, where)
        if conversation.is_own(route) or isinstance(error, NotFound | Unavailable):
            return error
        # A signature made a moment ago is refused: the store's trouble (clock, keys), not these credentials'.
        return Unavailable(
            f"the object store that the registry points to answers {reply.status}",
            where=f"{where} at {route.authority}",
        )

    # ---- who may pull ----

    def _proven(self, attempt: Callable[[Conversation], T], digest_of: Callable[[T], Digest]) -> T:
        """What the first host says, with the registry's leave. A mirror that has looked at the credentials of this request gives
        that itself; one that asks nobody for any (a peer, an open cache) says what there is, not who may have it."""
        result, speaker = self._first("resolve", lambda conversation: (attempt(conversation), conversation))
        origin = next((each for each in reversed(self._conversations) if each.endpoint.origin), None)
        if speaker.vouches or origin is None or "resolve" not in origin.endpoint.capabilities:
            return result
        away, url = self._transport.health.away, origin.endpoint.url
        if not away.may_ask(url):
            return result
        try:
            self._head(origin, digest=digest_of(result))
        except (Unavailable, AddressRefused) as error:
            if not (isinstance(error, Unavailable) and error.answered):
                # As long as nobody can ask it, mirrors stand in for it: that is what they are for.
                away.note(url)
                _log.info(
                    "registry_not_asked", registry=self.reference.host, mirror=speaker.authority, reason=error.what
                )
                return result
            away.clear(url)
            raise
        except NotFound:
            away.clear(url)
            return attempt(origin)  # what a mirror remembers of a tag may be gone there
        except WeightlessError:
            away.clear(url)
            raise
        away.clear(url)
        return result

    # ---- all endpoints ----

    def _first(
        self,
        capability: Capability,
        attempt: Callable[[Conversation], T],
        avoid: Collection[str] = (),
        *,
        urgent: bool = True,
    ) -> T:
        """The result of the first endpoint that has one; the error of the last otherwise. Later only for what is not `urgent`."""
        able = [each for each in self._conversations if capability in each.endpoint.capabilities]
        if not able:
            raise InvalidConfig(
                f"no host may be used to {capability}", where=self.reference.host, fix="see capabilities in hosts.toml"
            )
        able = [each for each in able if each.endpoint.url not in avoid] or able[-1:]
        health = self._transport.health
        detour = False  # a mirror that should have had the last word is in trouble
        for conversation in able:
            endpoint, last = conversation.endpoint, conversation is able[-1]
            if endpoint.origin and detour and not urgent:
                health.take_detour()
            if last or health.may_ask(endpoint):
                try:
                    result = attempt(conversation)
                except WeightlessError as error:
                    health.note(endpoint, error)
                    if last:
                        raise
                    self._tell_passed_over(conversation, error)
                    if not isinstance(error, Unavailable):
                        continue
                else:
                    health.note_success(endpoint)
                    return result
            detour = True
            if not urgent:
                health.check_crowd(endpoint)
        raise AssertionError  # the loop above returns or raises

    def _tell_passed_over(self, conversation: Conversation, error: WeightlessError) -> None:
        _log.info("mirror_passed_over", mirror=conversation.authority, reason=error.what, registry=self.reference.host)

    def _where(self, target: str, conversation: Conversation) -> str:
        joint = "@" if ":" in target else ":"
        mirror = "" if conversation.endpoint.origin else f" at {conversation.authority}"
        return f"{self.reference.name}{joint}{target}{mirror}"

    def _control(self, method: str, route: Route, headers: Mapping[str, str]) -> ControlReply:
        with self._traced(method, route) as span:
            reply = self._transport.control.send(route, method, headers)
            span.set("http.response.status_code", reply.status)
            return reply

    def _range(self, lane: object, route: Route, headers: Mapping[str, str]) -> RangeReply:
        with self._traced("GET", route) as span:
            reply = self._transport.ranges.send(route, headers, lane)
            span.set("http.response.status_code", reply.status)
            return reply

    def _traced(self, method: str, route: Route) -> AbstractContextManager[tracing.Span]:
        """Until the head of the answer is there. The URL may be a signed one: a span has the host alone."""
        if not tracing.on():
            return tracing.inner_span(method, kind="client")
        parts = urlsplit(f"//{route.authority}")
        attributes: dict[str, tracing.Value] = {"http.request.method": method, "server.address": parts.hostname or ""}
        if parts.port:
            attributes["server.port"] = parts.port
        return tracing.inner_span(method, attributes, kind="client")


def _retried(call: Callable[[], T], cancel: threading.Event | None) -> T:
    """Control traffic is tried a few times on temporary failures; each wait ends early when `cancel` is set."""
    event = cancel or threading.Event()

    def checked() -> T:
        if event.is_set():
            raise Cancelled("given up before the registry answered")
        return call()

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=_pause,
        retry=tenacity.retry_if_exception_type(Unavailable),
        sleep=tenacity.sleep_using_event(event),
        reraise=True,
    )
    return retrying(checked)


def _pause(state: tenacity.RetryCallState) -> float:
    pause_s = _backoff(state)
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        pause_s = max(pause_s, min(error.retry_after_s, MAX_RETRY_AFTER_S))
    return pause_s
