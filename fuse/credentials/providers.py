"""Runs kubelet's credential providers, as kubelet does for images: kubelet itself gives no CSI driver what they said.

The protocol is credentialprovider.kubelet.k8s.io/v1 with the fields of KEP-4412: a JSON request on standard input, which alone
holds the token, a JSON answer on standard output. Providers are asked in the order of the file, and the first that has something
for the image speaks for it. Answers are remembered as they say themselves (`cacheKeyType`, `cacheDuration`), in memory, apart for
each ServiceAccount; equal questions at the same time are asked once. A provider that fails is passed over, as by kubelet, and a
note says so. Thread-safe, blocking.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from fuse.credentials.changes import Reread, marker
from fuse.credentials.given import PROVIDER_USER, Given, ServiceAccount
from fuse.credentials.matching import canonical_host, matches, of_image
from fuse.credentials.program import ProgramFailed, run
from fuse.credentials.providerconfig import Provider, load, parse_duration
from fuse.errors import Cancelled, InvalidConfig, WeightlessError
from fuse.registry.access import Credential

LIMIT_S: Final = 30.0
"""For one run; kubelet gives a publish two minutes."""
UNCACHED_S: Final = 300.0
"""How long a mount goes on with what its provider says must not be remembered, before it is asked again."""
_MOST_ANSWERS: Final = 4096
_LOOK_S: Final = 0.2
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED: Final = ("LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

_log = structlog.get_logger()

Annotations = Callable[[ServiceAccount], Mapping[str, str]]
"""Reads the annotations of a ServiceAccount. Raises a WeightlessError when they cannot be had."""
Note = Callable[[str], None]
KeyType = Literal["Image", "Registry", "Global"]


class _AuthConfig(msgspec.Struct):
    username: str = ""
    password: str = ""


class _Response(msgspec.Struct, kw_only=True, rename="camel"):
    api_version: str
    kind: Literal["CredentialProviderResponse"]
    cache_key_type: KeyType
    cache_duration: str | None = None
    auth: dict[str, _AuthConfig] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    """What a provider has for an image."""

    credential: Credential
    provider: str
    ends_at: float
    """Monotonic time from which it is to be asked again."""
    remembered: bool
    """It was not run for this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    auths: Mapping[str, Credential] = field(repr=False)
    key_type: KeyType
    lifetime_s: float
    """How long it may be remembered."""
    ends_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """On whose behalf a provider is run."""

    key: Hashable = ()
    """Answers are remembered apart by this; nothing in it leads back to a token."""
    token: str = field(default="", repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict)


class Providers:
    """The providers of a node."""

    def __init__(
        self,
        config: Path,
        bin_dir: Path,
        *,
        user: int = PROVIDER_USER,
        annotations: Annotations | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """`user`: whom programs run as, if we are root. Without `annotations` providers that require some are passed over."""
        self._config = Reread(config, load)
        self._bin_dir = bin_dir
        self._user = user
        self._annotations = annotations
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._flights: dict[Hashable, Future[_Answer | str]] = {}

    def check(self) -> None:
        """Raises InvalidConfig for a file that cannot be used, and for programs that are not there."""
        for provider in self._config.value():
            program = self._bin_dir / provider.name
            if not (program.is_file() and os.access(program, os.X_OK)):
                fix = "correct provider-bin-dir, or install the provider there"
                raise InvalidConfig(
                    "the credential provider is not there, or is no program", where=str(program), fix=fix
                )

    def marker(self) -> Hashable:
        """Differs when the configuration has changed."""
        return marker(self._config.path)

    def find(
        self, image: str, given: Given, note: Note, *, of_pods: bool, cancel: threading.Event, fresh: bool
    ) -> Provided | None:
        """What the first provider says that has something for `image`.

        `of_pods`: those that get a token of the pod's ServiceAccount; else those that go by the node's identity. `fresh`: what is
        remembered does not count. `note` is told why one was passed over. Raises InvalidConfig and Cancelled.
        """
        for provider in self._config.value():
            if not any(matches(pattern, image) for pattern in provider.match_images):
                continue
            identity = self._of_pod(provider, given, note) if of_pods else _of_node(provider, given)
            if identity is None:
                continue
            answer, remembered = self._ask(provider, identity, image, cancel, fresh=fresh)
            if isinstance(answer, str):
                note(f"credential provider {provider.name} {answer}")
                continue
            keys = of_image(answer.auths, image)
            if keys:
                return Provided(
                    credential=answer.auths[keys[0]],
                    provider=provider.name,
                    ends_at=answer.ends_at,
                    remembered=remembered,
                )
        return None

    def _of_pod(self, provider: Provider, given: Given, note: Note) -> _Identity | None:
        attributes, account = provider.token_attributes, given.account
        if attributes is None:
            return None
        name, audience = provider.name, attributes.service_account_token_audience
        if account is None:
            if attributes.require_service_account:
                note(f"credential provider {name} needs a pod's ServiceAccount, and the request tells of none")
            return None
        token = given.tokens.get(audience)
        if token is None:
            note(
                f"credential provider {name} needs a token for {audience!r}: name that audience in CSIDriver.tokenRequests"
            )
            return None
        if token.account not in (None, account):
            # Without podInfoOnMount the author of an inline volume may write the account's name: it must not be believed.
            note(f"the token for credential provider {name} is not of {account}: set CSIDriver.podInfoOnMount")
            return None
        if token.expires_at <= time.time():
            note(f"the token for credential provider {name} has ended: set CSIDriver.requiresRepublish")
            return None
        required = attributes.required_service_account_annotation_keys
        wanted = (*required, *attributes.optional_service_account_annotation_keys)
        try:
            found = self._annotations(account) if wanted and self._annotations is not None else {}
        except WeightlessError as error:
            note(f"credential provider {name} was not asked: {error.what}")
            return None
        if any(key not in found for key in required):
            missing = ", ".join(key for key in required if key not in found)
            why = "which this driver cannot read" if self._annotations is None else f"which {account} does not have"
            note(f"credential provider {name} requires the annotations {missing}, {why}")
            return None
        annotations = {key: found[key] for key in wanted if key in found}
        whose: Hashable = (account, token.account_uid, tuple(sorted(annotations.items())))
        # What is remembered for an account is for who has shown to be that account: a token that does not say stands for itself.
        by_account = attributes.cache_type == "ServiceAccount" and token.account is not None
        return _Identity(
            key=whose if by_account else (whose, token.name),
            token=token.text,
            annotations=annotations,
        )

    # ---- what is remembered ----

    def _ask(
        self, provider: Provider, identity: _Identity, image: str, cancel: threading.Event, *, fresh: bool
    ) -> tuple[_Answer | str, bool]:
        """The answer, or how the provider failed, in words; and whether it was remembered."""
        base = (provider, identity.key)
        while True:
            with self._lock:
                answer = None if fresh else self._remembered_locked(base, image)
                if answer is not None:
                    return answer, True
                flight = self._flights.get((base, image))
                if flight is None:
                    mine = self._flights[base, image] = Future()
            if flight is None:
                return self._fly(mine, provider, identity, image, cancel), False
            outcome = _outcome(flight, cancel)
            if outcome is not None:
                return outcome, False

    def _fly(
        self,
        flight: Future[_Answer | str],
        provider: Provider,
        identity: _Identity,
        image: str,
        cancel: threading.Event,
    ) -> _Answer | str:
        base = (provider, identity.key)
        try:
            outcome = self._outcome(provider, identity, image, cancel)
        except BaseException:
            with self._lock:
                del self._flights[base, image]
            flight.cancel()  # whoever waits for it asks anew
            raise
        with self._lock:
            if isinstance(outcome, _Answer) and outcome.lifetime_s > 0:
                self._forget_ended_locked()
                key = (base, *_scope(outcome.key_type, image))
                self._answers[key] = outcome
                self._answers.move_to_end(key)
                if len(self._answers) > _MOST_ANSWERS:
                    self._answers.popitem(last=False)
            del self._flights[base, image]
        flight.set_result(outcome)
        return outcome

    def _forget_ended_locked(self) -> None:
        now = time.monotonic()
        for key in [key for key, answer in self._answers.items() if answer.ends_at <= now]:
            del self._answers[key]

    def _remembered_locked(self, base: Hashable, image: str) -> _Answer | None:
        kinds: tuple[KeyType, ...] = ("Image", "Registry", "Global")
        for kind in kinds:
            key = (base, *_scope(kind, image))
            answer = self._answers.get(key)
            if answer is not None and answer.ends_at > time.monotonic():
                return answer
            self._answers.pop(key, None)
        return None

    # ---- one run ----

    def _outcome(self, provider: Provider, identity: _Identity, image: str, cancel: threading.Event) -> _Answer | str:
        request: dict[str, object] = {
            "kind": "CredentialProviderRequest",
            "apiVersion": provider.api_version,
            "image": image,
        }
        if identity.token:
            request["serviceAccountToken"] = identity.token
        if identity.annotations:
            request["serviceAccountAnnotations"] = dict(identity.annotations)
        began = time.monotonic()
        try:
            code, output = run(
                [str(self._bin_dir / provider.name), *provider.args],
                msgspec.json.encode(request),
                limit_s=self._limit_s,
                environment=_environment(provider),
                user=self._user,
                cancel=cancel,
            )
            answer = _understood(provider, code, output, began)
        except ProgramFailed as failure:
            _log.warning("provider_failed", provider=provider.name, image=image, how=failure.how)
            return failure.how
        _log.info("provider_ran", provider=provider.name, image=image, duration_s=round(time.monotonic() - began, 3))
        return answer


def _outcome(flight: Future[_Answer | str], cancel: threading.Event) -> _Answer | str | None:
    """What somebody else's run says; None when that was given up. Raises Cancelled when we are to give up."""
    while True:
        try:
            return flight.result(_LOOK_S)
        except CancelledError:
            return None
        except TimeoutError:
            if cancel.is_set():
                raise Cancelled("given up while credentials were being fetched") from None


def _of_node(provider: Provider, given: Given) -> _Identity | None:
    """A provider that may do without a ServiceAccount does so where there is none, and goes by the node then."""
    attributes = provider.token_attributes
    if attributes is None:
        return _Identity()
    return _Identity() if not attributes.require_service_account and given.account is None else None


def _scope(kind: KeyType, image: str) -> tuple[KeyType, str]:
    of = {"Image": image, "Registry": canonical_host(image.partition("/")[0]), "Global": ""}
    return kind, of[kind]


def _environment(provider: Provider) -> dict[str, str]:
    """Nothing of ours but what it takes to reach the network, and what the file says."""
    names = (*_INHERITED, *_PROXIES, *(name.lower() for name in _PROXIES))
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    return {"PATH": _PATH, "HOME": "/", **inherited, **{each.name: each.value for each in provider.env}}


def _understood(provider: Provider, code: int, output: bytes, began: float) -> _Answer:
    """Raises ProgramFailed, with nothing of the output."""
    if code != 0:
        raise ProgramFailed(f"ended with code {code}")
    try:
        response = msgspec.json.decode(output, type=_Response)
        stated = provider.default_cache_s
        if response.cache_duration is not None:
            stated = parse_duration(response.cache_duration)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise ProgramFailed("did not answer with a CredentialProviderResponse") from None
    if response.api_version != provider.api_version:
        raise ProgramFailed("answered in another version of the protocol than it was asked in")
    auths = {
        key: Credential(username=each.username, password=each.password)
        for key, each in (response.auth or {}).items()
        if each.username or each.password
    }
    return _Answer(
        auths=auths,
        key_type=response.cache_key_type,
        lifetime_s=stated,
        ends_at=began + (stated or UNCACHED_S),
    )
