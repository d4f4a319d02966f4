"""Asking one endpoint for something of one repository: authorisation and redirects, the same for both HTTP clients.

Knows nothing of manifests and blobs. Thread-safe, as its parts are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar
from urllib.parse import quote

from fuse.errors import Unavailable, WeightlessError
from fuse.registry import echoes
from fuse.registry.access import Access, Endpoint
from fuse.registry.peers import headers_for, judged
from fuse.registry.reply import MAX_ERROR_BYTES, REDIRECTS, Reply, TooLarge, failure
from fuse.registry.route import Route
from fuse.registry.transport import Transport

MAX_REDIRECTS: Final = 5

R = TypeVar("R", bound=Reply)
Send = Callable[[Route, Mapping[str, str]], R]


class Conversation:
    """One endpoint as seen by one credential and one repository."""

    def __init__(
        self,
        transport: Transport,
        access: Access,
        endpoint: Endpoint,
        repository: str,
        where: str,
        *,
        actions: str = "pull",
    ) -> None:
        """`actions`: what tokens are asked for, `pull` or `pull,push`."""
        self.endpoint = endpoint
        self._repository = repository
        self._routes = transport.routes(access, endpoint)
        self._authorizer = transport.authorizer(endpoint, repository, where, actions)

    @property
    def authority(self) -> str:
        """Host and port of the endpoint, to be shown."""
        return self._routes.authority

    @property
    def vouches(self) -> bool:
        """Whether what this host gives is only for who may have it: it is the registry, or has taken these credentials."""
        return self.endpoint.origin or self._authorizer.checked

    def ask(self, send: Send[R], path: str, headers: Mapping[str, str], *, urgent: bool = True) -> tuple[R, Route]:
        """Sends a request for `path` (below the repository), with what credentials it takes and through redirects.

        `urgent`: somebody waits for the answer; a peer is told so (`fuse.registry.peers`). Returns the last answer, whatever its
        status, and where it came from; the caller closes it.
        """
        joint = "&" if "?" in path else "?"
        query = f"{joint}ns={quote(self.endpoint.namespace, safe='')}" if self.endpoint.namespace else ""
        return self._ask(send, self._routes.own(f"/{self._repository}/{path}{query}"), headers, urgent=urgent)

    def follow(self, send: Send[R], came_from: Route, location: str, headers: Mapping[str, str]) -> tuple[R, Route]:
        """As `ask`, for where an answer pointed to (an upload's Location): under the rules of redirects."""
        route = self._routes.redirected(came_from, location)
        if not self.is_own(route):
            return send(route, headers), route
        return self._ask(send, route, headers, urgent=True)

    def _ask(self, send: Send[R], route: Route, headers: Mapping[str, str], *, urgent: bool) -> tuple[R, Route]:
        # For the endpoint alone: what hosts.toml and the authorizer say is nobody else's business.
        own = headers_for(self.endpoint, urgent=urgent) | dict(headers)
        authorization = self._authorizer.header(self._routes.realm)
        reply = send(route, _with(own, authorization))
        if reply.status == 401:
            challenge = reply.header("WWW-Authenticate")
            _finish(reply)
            authorization = self._authorizer.answer(challenge, authorization, self._routes.realm)
            reply = send(route, _with(own, authorization))
        origin = route
        for _ in range(MAX_REDIRECTS):
            location = reply.header("Location")
            if reply.status not in REDIRECTS or not location:
                return reply, route
            _finish(reply)
            route = self._routes.redirected(route, location)
            reply = send(route, _with(own, authorization) if route.same_origin(origin) else headers)
        if reply.status in REDIRECTS:
            reply.close()
            raise Unavailable(
                f"more than {MAX_REDIRECTS} redirects", where=self.authority, fix="tell whoever runs the registry"
            )
        return reply, route

    def is_own(self, route: Route) -> bool:
        """Whether `route` leads to the endpoint itself and not to where it pointed."""
        return route.same_origin(self._routes.own("/"))

    def failure(self, reply: Reply, where: str) -> WeightlessError:
        """The error that `reply` stands for; closes it."""
        secrets = (*self._authorizer.secrets, *echoes.of_headers(self.endpoint.headers))
        return judged(self.endpoint, reply, failure(reply, where, secrets=secrets))


def _with(headers: Mapping[str, str], authorization: str) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers


def _finish(reply: Reply) -> None:
    """Reads the short body of an answer that is not the last, so that its connection can be used for the next request."""
    with suppress(TooLarge, Unavailable):
        reply.read(MAX_ERROR_BYTES)
    reply.close()
