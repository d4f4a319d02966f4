"""kubelet's tokens as values."""

from __future__ import annotations

import base64
import json

import pytest

from fuse.credentials.given import Given, ServiceAccount, is_weaker, parse_tokens
from fuse.errors import InvalidRequest

CANARY = "canary-token-77"


def jwt(**claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"header.{payload}.signature"


def said(token: str, audience: str = "registry") -> str:
    return json.dumps({audience: {"token": token, "expirationTimestamp": "2030-01-02T03:04:05Z"}})


def test_a_token_is_found_by_its_audience() -> None:
    """With its end, and the ServiceAccount's uid that stands in it."""
    account = {"namespace": "team", "serviceaccount": {"name": "reader", "uid": "u-1"}}
    token = jwt(**{"kubernetes.io": account})

    found = parse_tokens(said(token), "tokens")["registry"]

    assert (token, 1893553445.0) == (found.text, found.expires_at)
    assert (ServiceAccount("team", "reader"), "u-1") == (found.account, found.account_uid)


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "a.é.c", jwt(sub="x"), jwt(**{"kubernetes.io": 5})])
def test_a_token_that_says_nothing_is_one_all_the_same(token: str) -> None:
    """Its content is the provider's business."""
    found = parse_tokens(said(token), "tokens")["registry"]
    assert (None, "") == (found.account, found.account_uid)


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f'{{"a": "{CANARY}"}}',
        f'{{"a": {{"token": "{CANARY}"}}}}',
        f'["{CANARY}"]',
        f'{{"a": {{"token": "{CANARY}", "expirationTimestamp": "0001-01-01T00:00:00"}}}}',
        '{"a": {"x": ' + "[" * 100_000,
    ],
)
def test_what_kubelet_does_not_write_is_not_quoted(text: str) -> None:
    """The error names the place."""
    with pytest.raises(InvalidRequest, match="tokens: is not what kubelet writes") as caught:
        parse_tokens(text, "tokens")
    assert CANARY not in str(caught.value)


def test_nothing_given_is_shown() -> None:
    """Neither a secret nor a token is in what is printed."""
    tokens = parse_tokens(said(CANARY), "tokens")

    assert CANARY not in repr(Given(secrets={"password": CANARY}, tokens=tokens))
    assert CANARY not in repr(tokens)
    assert CANARY not in tokens["registry"].name


def test_rungs_have_an_order() -> None:
    """And what an older record says is weaker than nothing."""
    assert is_weaker("anonymous", "pod-identity")
    assert not is_weaker("pod-identity", "anonymous")
    assert not is_weaker("pod-identity", "pod-identity")
    assert not is_weaker("anonymous", "")
