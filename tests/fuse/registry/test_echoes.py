"""A registry that repeats what it was sent: no error says a secret, in whichever form it went over the wire."""

from __future__ import annotations

import base64

import pytest

from fuse.errors import Forbidden
from fuse.registry.access import Credential
from fuse.registry.reply import clean
from fuse.registry.transport import Transport
from tests.fuse.registry.conftest import endpoint_of, repository_at
from tests.support.registry import FaultyRegistry, Tokens
from weightless.demo.registry import Request, Response

PASSWORD = "canary/pass+w0rd=="
HEADER = "canary-header-77"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()


class Echo(FaultyRegistry):
    """Says no, and what it was sent."""

    def _token(self, request: Request) -> Response:
        return self._repeating(request)

    def serve(self, request: Request) -> Response:
        return self._repeating(request)

    def _repeating(self, request: Request) -> Response:
        said = f"you sent {request.headers.get('authorization')} {request.headers.get('x-key')} {request.body.decode()}"
        return Response.error(403, "DENIED", said)


@pytest.mark.parametrize(
    "credential", [Credential(username="user", password=PASSWORD), Credential(identity_token=PASSWORD)]
)
def test_a_token_service_that_repeats_what_it_was_sent(transport: Transport, credential: Credential) -> None:
    """User and password as Basic writes them, an identity token as a form does."""
    with Echo(tokens=Tokens()) as registry, pytest.raises(Forbidden, match="you sent") as caught:
        repository_at(transport, endpoint_of(registry, credential=credential)).manifest("v1")
    _assert_hidden(str(caught.value))


def test_a_registry_that_repeats_what_it_was_sent(transport: Transport) -> None:
    """Credentials of Basic, and the headers of hosts.toml, with a scheme before the secret or without."""
    user = Credential(username="user", password=PASSWORD)
    with Echo(basic={"user": PASSWORD}) as registry:
        for value in (HEADER, f"Bearer {HEADER}"):
            endpoint = endpoint_of(registry, credential=user, headers=(("X-Key", value),))
            with pytest.raises(Forbidden, match="you sent") as caught:
                repository_at(transport, endpoint).manifest("v1")
            _assert_hidden(str(caught.value))
            assert HEADER not in repr(endpoint)


def test_a_longer_secret_is_cut_out_before_a_part_of_it() -> None:
    """Else its rest would be left."""
    assert "…" == clean("hunter2-and-more", ["hunter2", "hunter2-and-more"])


def _assert_hidden(text: str) -> None:
    for secret in (PASSWORD, BASIC, "canary", "w0rd"):
        assert secret not in text
