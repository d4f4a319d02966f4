"""A registry with credentials, tokens, redirects and faults by script, for tests. Real HTTP over loopback.

Faults are words, one a request, used up in order; afterwards (or with `forever`, the last again and again):

    ok            as usual                      no-range      ignore Range, answer 200 and the whole blob
    500 429 …     that status                   wrong-range   answer 206 with another range than asked for
    429;7         with `Retry-After: 7`         redirect      307 to a signed URL (of `object_store`, or of this server)
    cut@4096      close after 4096 body bytes   corrupt       one bit of the body is wrong
    stall@4096    stop after 4096 body bytes    hang          never answer
    slow@100000   at 100000 bytes a second      extra         send more than was asked for
                                                late-range    leave out the first byte asked for
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs

from weightless.demo.registry import ModelRegistry, Request, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One request and the status it got (0: none was sent)."""

    request: Request
    kind: str
    status: int
    fault: str

    @property
    def authorization(self) -> str:
        return self.request.headers.get("authorization", "")


@dataclass(slots=True, kw_only=True)
class Tokens:
    """A token service on the registry's own address, at /token."""

    users: dict[str, str] = field(default_factory=dict)
    """Names and passwords that get a token."""
    refresh_tokens: set[str] = field(default_factory=set)
    anonymous: bool = False
    """Whether a token is given to anybody."""
    expires_in_s: float | None = 300
    """None leaves `expires_in` out of the answer; such tokens are good for 60 s."""
    realm: str = ""
    """Instead of the registry's own /token."""
    service: str = "test-registry"
    delay_s: float = 0.0
    issued: int = 0
    valid: dict[str, float] = field(default_factory=dict)
    """Tokens and when they end, on the monotonic clock."""


class FaultyRegistry(ModelRegistry):
    """`ModelRegistry` with Basic or Bearer credentials and faults. `basic` maps user names to passwords."""

    def __init__(
        self,
        *,
        basic: dict[str, str] | None = None,
        tokens: Tokens | None = None,
        denied: set[str] | None = None,
        object_store: FaultyRegistry | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        rate_bytes_per_s: float | None = None,
    ) -> None:
        super().__init__(host=host, port=port, tls=tls, rate_bytes_per_s=rate_bytes_per_s)
        self.basic = basic
        self.tokens = tokens
        self.denied = denied or set()
        """Repositories that answer 403 even to good credentials."""
        self.closed_to: dict[str, set[str]] = {}
        """Repositories that answer 403 to these users, by user name (with `basic`)."""
        self.object_store = object_store
        self.log: list[Logged] = []
        self.hanging = 0
        """Requests that have ever been left hanging; the log has them once they are let go."""
        self._scripts: dict[str, tuple[list[str], bool]] = {}
        self._state = threading.Lock()
        self._released = threading.Event()
        self._signature = "s0"

    def stop(self) -> None:
        self._released.set()
        super().stop()

    # ---- what tests set and ask ----

    def script(self, kind: str, words: str, *, forever: bool = False) -> None:
        """Faults for the next requests of a kind: `manifest`, `blob`, `referrers`, `token`, `signed`.

        `forever` repeats the last word.
        """
        with self._state:
            self._scripts[kind] = (words.split(), forever)

    def clear_scripts(self) -> None:
        with self._state:
            self._scripts.clear()

    def release(self) -> None:
        """Lets go what `stall` and `hang` hold (their connections are closed)."""
        self._released.set()
        self._released = threading.Event()

    def expire_signatures(self) -> None:
        """Signed URLs given out so far answer 403 from now on."""
        with self._state:
            self._signature = f"s{int(self._signature[1:]) + 1}"

    def revoke_tokens(self) -> None:
        """Bearer tokens given out so far are refused from now on."""
        assert self.tokens is not None
        with self._state:
            self.tokens.valid.clear()

    def requests(self, kind: str | None = None) -> list[Logged]:
        with self._state:
            return [entry for entry in self.log if kind is None or entry.kind == kind]

    # ---- answering ----

    def answer(self, request: Request) -> Response:
        kind = _kind(request)
        fault = self._next_fault(kind)
        if fault == "hang":
            released = self._released
            with self._state:
                self.hanging += 1
            released.wait()
            response = Response(status=500, close=True)
        else:
            response = self._faulty(fault, request, self._authorised(kind, request, fault))
        with self._state:
            self.log.append(Logged(request=request, kind=kind, status=response.status, fault=fault))
        return response

    def _next_fault(self, kind: str) -> str:
        with self._state:
            words, forever = self._scripts.get(kind, ([], False))
            if not words:
                return "ok"
            return words[0] if forever and len(words) == 1 else words.pop(0)

    def _authorised(self, kind: str, request: Request, fault: str) -> Response:
        if kind == "token":
            return self._token(request)
        if kind == "signed":
            return self._signed(request)
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        repository = request.path.removeprefix("/v2/").rsplit("/", 2)[0]
        if repository in self.denied | self.closed_to.get(_basic_user(request), set()):
            return Response.error(403, "DENIED", "requested access to the resource is denied")
        if fault in ("no-range", "wrong-range", "late-range", "extra"):
            return self.serve(_without_range(request, fault))
        return self.serve(request)

    def serve(self, request: Request) -> Response:
        """The answer to a request that may be made; for subclasses that can do more."""
        return super().answer(request)

    def _refusal(self, request: Request) -> Response | None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if self.basic is not None:
            if scheme.lower() == "basic" and _user_of(value) in self.basic.items():
                return None
            challenge = 'Basic realm="test registry"'
        elif self.tokens is not None:
            with self._state:
                if scheme.lower() == "bearer" and self.tokens.valid.get(value, 0.0) > time.monotonic():
                    return None
            repository = request.path.removeprefix("/v2/").rsplit("/", 2)[0]
            realm = self.tokens.realm or f"{self.url}/token"
            challenge = f'Bearer realm="{realm}",service="{self.tokens.service}",scope="repository:{repository}:pull"'
        else:
            return None
        return Response.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})

    def _token(self, request: Request) -> Response:
        tokens = self.tokens
        if tokens is None:
            return Response.error(404, "NAME_UNKNOWN", "no such path")
        time.sleep(tokens.delay_s)
        if request.method == "POST":
            form = {name: values[-1] for name, values in parse_qs(request.body.decode()).items()}
            allowed = form.get("grant_type") == "refresh_token" and form.get("refresh_token") in tokens.refresh_tokens
            field_name = "access_token"
        else:
            scheme, _, value = request.headers.get("authorization", "").partition(" ")
            known = scheme.lower() == "basic" and _user_of(value) in tokens.users.items()
            allowed = known or (not scheme and tokens.anonymous)
            field_name = "token"
        if not allowed:
            return Response.error(401, "UNAUTHORIZED", "incorrect username or password")
        token = secrets.token_hex(16)
        lifetime = 60.0 if tokens.expires_in_s is None else tokens.expires_in_s
        with self._state:
            tokens.issued += 1
            tokens.valid[token] = time.monotonic() + lifetime
        answer = {field_name: token}
        if tokens.expires_in_s is not None:
            answer["expires_in"] = int(tokens.expires_in_s)  # type: ignore[assignment] # JSON number on purpose
        return Response.of(200, json.dumps(answer).encode(), "application/json")

    def _signed(self, request: Request) -> Response:
        if "authorization" in request.headers:
            # What S3 answers to a signed URL with a second authentication.
            return Response.error(400, "InvalidArgument", "only one auth mechanism allowed")
        with self._state:
            fresh = request.query.get("signature") == self._signature
        if not fresh:
            return Response.error(403, "AccessDenied", "request has expired")
        return self.blob(request.path.removeprefix("/signed/"), request)

    def _faulty(self, fault: str, request: Request, response: Response) -> Response:
        name, _, argument = fault.partition("@")
        status, _, retry_after = fault.partition(";")
        if status.isdecimal():
            headers = {"Retry-After": retry_after} if retry_after else {}
            return Response.error(int(status), "FAULT", "as the script says", headers)
        if name in ("cut", "stall"):
            response.close = True
            response.pieces = self._until(response.pieces, int(argument or 0), hold=name == "stall")
        elif name == "slow":
            response.pieces = _slowly(response.pieces, int(argument))
        elif name == "corrupt":
            response.pieces = _corrupt(response.pieces)
        elif name == "redirect" and response.status in (200, 206):
            store = self.object_store or self
            digest = request.path.rsplit("/", 1)[1]
            location = f"{store.url}/signed/{digest}?signature={store._signature}"
            return Response(status=307, headers={"Location": location})
        return response

    def _until(self, pieces: Iterable[bytes], count: int, *, hold: bool) -> Iterator[bytes]:
        released = self._released
        for piece in pieces:
            part = piece[:count]
            count -= len(part)
            if part:
                yield part
            if len(part) < len(piece) or not count:
                break
        if hold:
            released.wait()


def _kind(request: Request) -> str:
    if request.path == "/token":
        return "token"
    if request.path.startswith("/signed/"):
        return "signed"
    if "/manifests/" in request.path:
        return "manifest"
    if "/referrers/" in request.path:
        return "referrers"
    return "blob" if "/blobs/" in request.path else "other"


def _basic_user(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return _user_of(value)[0] if scheme.lower() == "basic" else ""


def _user_of(value: str) -> tuple[str, str]:
    name, _, password = base64.b64decode(value).decode().partition(":")
    return name, password


def _without_range(request: Request, fault: str) -> Request:
    headers = {name: value for name, value in request.headers.items() if name != "range"}
    if fault != "no-range" and request.range:
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        start = int(first) + (fault != "extra")
        headers["range"] = f"bytes={start}-{int(last) + (fault != 'late-range')}"
    return replace(request, headers=headers)


def _slowly(pieces: Iterable[bytes], bytes_per_s: int) -> Iterator[bytes]:
    step = max(1, bytes_per_s // 20)
    for piece in pieces:
        for start in range(0, len(piece), step):
            time.sleep(0.05)
            yield piece[start : start + step]


def _corrupt(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        middle = len(piece) // 2
        yield piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
