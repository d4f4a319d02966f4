"""Asks each host of a reference for its manifest, as a mount would: with this node's mirrors, certificates and credentials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from fuse.artifact.reference import Reference
from fuse.errors import Cancelled, NotFound, WeightlessError
from fuse.registry.access import Access, Credential, Endpoint
from fuse.registry.repository import Repository
from fuse.registry.transport import Transport
from weightless.doctor.finding import Finding, failed, ok, warning

_LIMIT_S: Final = 20.0
_CHECK: Final = "registry"

Ask = Callable[[Access, str], str]
"""The digest of the manifest at the one endpoint of an access, by tag or digest. Raises a WeightlessError."""


def registry(text: str, access: Access, ask: Ask) -> Iterator[Finding]:
    """The registry itself first: what it says decides. A mirror that fails is passed over by mounts, so it is a warning."""
    reference = Reference.parse(text)
    target = str(reference.digest or reference.tag or "latest")
    for endpoint in sorted(access.endpoints, key=lambda each: not each.origin):
        alone = msgspec.structs.replace(access, endpoints=(_asked(endpoint),))
        place = f"{endpoint.url} ({_shown(endpoint.credential)})"
        try:
            digest = ask(alone, target)
        except NotFound as error:
            # A mirror need not have everything.
            yield failed(_CHECK, error) if endpoint.origin else ok("mirror", f"{place} answers, and does not have it")
        except WeightlessError as error:
            check, state = (_CHECK, "broken") if endpoint.origin else ("mirror", "warning")
            yield failed(check, error, "broken" if state == "broken" else "warning")
        else:
            if endpoint.origin:
                target = digest
            yield ok(_CHECK if endpoint.origin else "mirror", f"{place} has {digest}")
        if endpoint.skip_verify:
            yield warning(
                _CHECK, f"{endpoint.url} is not checked for its certificate", "give its authority by ca in hosts.toml"
            )


def _asked(endpoint: Endpoint) -> Endpoint:
    """One that is there for blobs only can be asked for a manifest all the same, by digest."""
    values = {name: getattr(endpoint, name) for name in endpoint.__struct_fields__}
    return Endpoint(**(values | {"capabilities": ("pull", "resolve")}))


def _shown(credential: Credential | None) -> str:
    """What kind there is, and never what it is."""
    if credential is None:
        return "anonymous"
    return "as the user of its credentials" if credential.username else "by a token"


def ask_for_manifest(text: str, transport: Transport) -> Ask:
    reference = Reference.parse(text)

    def ask(access: Access, target: str) -> str:
        cancel = threading.Event()
        timer = threading.Timer(_LIMIT_S, cancel.set)
        timer.start()
        try:
            return str(Repository(reference, access, transport).manifest(target, cancel=cancel).digest)
        except Cancelled:
            raise WeightlessError(
                f"it did not answer within {_LIMIT_S:.0f} s", where=access.endpoints[0].url, fix="see the network"
            ) from None
        finally:
            timer.cancel()
            timer.join()

    return ask
