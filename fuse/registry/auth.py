"""Credentials at work: anonymous first, then what the registry's challenge asks for (Basic, or a Bearer token).

One `Authorizer` stands for one credential at one repository of one endpoint, so tenants never share a token. Tokens are renewed
before they end, by one thread at a time while the others wait for its result. Thread-safe. Tokens live in memory only.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, urlencode

import msgspec

from fuse.errors import Forbidden, Unauthenticated, Unavailable, WeightlessError
from fuse.registry import echoes
from fuse.registry.access import Credential
from fuse.registry.challenge import Challenge, parse_challenges
from fuse.registry.control import ControlClient
from fuse.registry.reply import TooLarge, failure
from fuse.registry.route import Route

DEFAULT_LIFETIME_S: Final = 60.0
"""Of a token whose answer does not say (distribution, spec/auth/token)."""
_MAX_TOKEN_ANSWER_BYTES: Final = 1024 * 1024
_MAX_TOKEN: Final = 64 * 1024
_FAILURE_HOLDS_S: Final = 0.25
_RENEWAL_PAUSE_S: Final = 1.0
_MAX_AUTHORIZERS: Final = 4096
_READING: Final = frozenset({"pull", "metadata_read"})
"""Actions of scopes; the second is Azure's, for lists of tags and referrers."""
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_TOKENS: Final = "the token service that the registry names is at fault: tell whoever runs the registry"


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Authorizer:
    """What to put into the Authorization header, and what to do about a 401."""

    def __init__(
        self, credential: Credential | None, repository: str, where: str, control: ControlClient, actions: str = "pull"
    ) -> None:
        self._actions = actions
        self._credential = credential
        self._repository = repository
        self._where = where
        self._control = control
        self._lock = threading.Lock()
        self._header = ""
        self._renew_at = float("inf")
        self._ends_at = float("inf")
        self._challenge: Challenge | None = None
        self._failure: WeightlessError | None = None
        self._failed_at = 0.0
        self._asked_for = False
        if credential is not None and credential.registry_token:
            self._header = f"Bearer {_printable(credential.registry_token, where)}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not appear in an error's text."""
        return echoes.of_credential(self._credential, self._header)

    @property
    def checked(self) -> bool:
        """Whether the other side has asked for credentials, and these are some: it does not let in whoever comes."""
        return self._asked_for and self._credential is not None

    def header(self, realm: Callable[[str], Route]) -> str:
        """The Authorization to send first: empty until a challenge was met. Renews a token that is about to end."""
        if time.monotonic() < self._renew_at:
            return self._header
        with self._lock:
            if time.monotonic() >= self._renew_at and self._challenge is not None:
                try:
                    self._renew(self._challenge, realm)
                except WeightlessError:
                    if time.monotonic() >= self._ends_at:
                        raise
                    # The token is still good: do not stop for a token service that may be back in a moment.
                    self._renew_at = min(time.monotonic() + _RENEWAL_PAUSE_S, self._ends_at)
            return self._header

    def answer(self, www_authenticate: str, refused: str, realm: Callable[[str], Route]) -> str:
        """The Authorization to send after a 401 to a request that bore `refused`.

        Raises Unauthenticated when there is nothing better to send; Forbidden, Unavailable or AddressRefused when the token
        service says no, does not answer, or lies where it may not.
        """
        with self._lock:
            if self._header and self._header != refused:
                return self._header  # another thread renewed it meanwhile
            if self._failure is not None and time.monotonic() - self._failed_at < _FAILURE_HOLDS_S:
                # The threads that waited for a renewal that failed share its failure instead of repeating it.
                raise self._failure.again()
            try:
                self._meet(parse_challenges(www_authenticate), refused, realm)
            except WeightlessError as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise
            self._failure = None
            self._asked_for = True
            return self._header

    def _meet(self, challenges: list[Challenge], refused: str, realm: Callable[[str], Route]) -> None:
        credential = self._credential
        if credential is not None and credential.registry_token:
            raise Unauthenticated("the registry does not accept the token", where=self._where)
        bearer = next((challenge for challenge in challenges if challenge.scheme == "bearer"), None)
        if bearer is not None and bearer.parameter("realm"):
            self._renew(bearer, realm)
            return
        basic = any(challenge.scheme == "basic" for challenge in challenges)
        if basic and credential is not None and credential.username and not refused:
            self._header = _basic(credential)
            return
        if credential is None:
            raise Unauthenticated("the registry asks for credentials", where=self._where)
        raise Unauthenticated("the registry does not accept the credentials", where=self._where)

    def _renew(self, challenge: Challenge, realm: Callable[[str], Route]) -> None:
        """Gets a token. The caller holds the lock, which is what makes the renewal single."""
        route = realm(challenge.parameter("realm"))
        service = challenge.parameter("service")
        # A mirror's challenge knows better under which name it holds the repository (Harbor's proxy projects).
        # Who pushes asks for both at once: a challenge names what one request needs, and the next needs the other.
        scope = _for_reading(challenge.parameter("scope")) if self._actions == "pull" else ""
        scope = scope or f"repository:{self._repository}:{self._actions}"
        asked_at = time.monotonic()
        answer = self._ask(route, service, scope)
        token = _printable(answer.token or answer.access_token, route.authority)
        lifetime_s = DEFAULT_LIFETIME_S if answer.expires_in is None else max(0.0, answer.expires_in)
        self._header = f"Bearer {token}"
        self._challenge = challenge
        self._ends_at = asked_at + lifetime_s
        # A request that starts now may reach the registry seconds later; a tenth of a token's life pays for that.
        self._renew_at = self._ends_at - min(30.0, lifetime_s / 10)

    def _ask(self, route: Route, service: str, scope: str) -> _TokenAnswer:
        credential = self._credential
        headers = {"Accept": "application/json"}
        if credential is not None and credential.identity_token:
            form = {"grant_type": "refresh_token", "service": service, "scope": scope, "client_id": "weightless"}
            body = urlencode(form | {"refresh_token": credential.identity_token}).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            reply = self._control.send(route, "POST", headers, body)
        else:
            query = [("service", service)] if service else []
            query += [("scope", part) for part in scope.split(" ") if part]
            if credential is not None and credential.username:
                query.append(("account", credential.username))
                headers["Authorization"] = _basic(credential)
            reply = self._control.send(_with_query(route, urlencode(query, quote_via=quote)), "GET", headers)
        if reply.status != 200:
            error = failure(reply, f"{self._where}, token service {route.authority}", secrets=self.secrets)
            if isinstance(error, Unauthenticated | Forbidden | Unavailable):
                raise error
            raise Unauthenticated(error.what, where=error.where, fix=_TOKENS)
        try:
            return msgspec.json.decode(reply.read(_MAX_TOKEN_ANSWER_BYTES), type=_TokenAnswer, strict=False)
        except (TooLarge, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unavailable("the token service's answer is not a token", where=route.authority, fix=_TOKENS) from None
        finally:
            reply.close()


class Authorizers:
    """The authorizers of one process, by endpoint, repository and credential. Thread-safe."""

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, Credential | None, str], Authorizer] = OrderedDict()

    def authorizer(
        self, endpoint_url: str, repository: str, credential: Credential | None, where: str, actions: str = "pull"
    ) -> Authorizer:
        key = (endpoint_url, repository, credential, actions)
        with self._lock:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = Authorizer(credential, repository, where, self._control, actions)
                if len(self._known) > _MAX_AUTHORIZERS:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(key)
            return found


def _basic(credential: Credential) -> str:
    return f"Basic {echoes.basic(credential)}"


def _for_reading(scope: str) -> str:
    """Of what a challenge asks for, what reading takes: a token that may do more would be worth stealing."""
    found = []
    for part in scope.split(" "):
        thing, _, actions = part.rpartition(":")
        reading = ",".join(action for action in actions.split(",") if action in _READING)
        if reading and thing.startswith("repository"):
            found.append(f"{thing}:{reading}")
    return " ".join(found)


def _printable(token: str, where: str) -> str:
    """A token that can stand in a header: no line breaks that would begin another one."""
    if len(token) > _MAX_TOKEN or not _VISIBLE.fullmatch(token):
        raise Unavailable("the token service's answer holds no usable token", where=where, fix=_TOKENS)
    return token


def _with_query(route: Route, query: str) -> Route:
    joint = "&" if "?" in route.target else "?"
    return Route(
        scheme=route.scheme,
        host=route.host,
        port=route.port,
        target=f"{route.target}{joint}{query}",
        rule=route.rule,
        trust=route.trust,
    )
