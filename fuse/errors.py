"""What can go wrong, as types: one class for each cause that an operator would treat differently.

An error says *what* was wrong, *where* (a reference, a URL, a path, a digest) and how to *fix* it. Each class has a usual fix;
whoever raises gives a text of its own only where it knows more. The same error is read by a person at a terminal and by the
author of a pod, so a fix has words for both. Errors cross process borders (fetcher to plugin to kubelet), so each class has a
stable `kind` and travels as a `Fault`. Nothing here knows errno or gRPC codes: `fuse/worker/errnos.py` and `csi/status.py` own
those two tables.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Final, Self

import msgspec

MOST_CHARACTERS: Final = 4000
"""Of each text of a fault: what strangers wrote may be quoted in it, and it has to fit into a message between processes."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A `WeightlessError` on the wire."""

    kind: str
    what: str
    where: str = ""
    fix: str = ""


class WeightlessError(Exception):
    """Base of all errors that are meant to be read by a person.

    `what` names the cause, `where` the thing it happened to, `fix` what the reader can do (the class's usual fix, unless
    something better is given). None of them may hold a secret.
    """

    kind: ClassVar[str] = "internal"
    usual_fix: ClassVar[str] = (
        "this is a fault of weightless: look into the log (--log-level debug says more), and report it"
    )
    """What to do about errors of this class in general."""
    temporary: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix or self.usual_fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.fix})"

    def again(self, *, where: str | None = None, fix: str | None = None) -> Self:
        """The same error, to be raised anew: in another thread, or with a better `where` or `fix`."""
        copied = copy.copy(self)
        if where is not None:
            copied.where = where
        if fix is not None:
            copied.fix = fix
        return copied

    def to_fault(self) -> Fault:
        return Fault(kind=self.kind, what=_cut(self.what), where=_cut(self.where), fix=_cut(self.fix))


class InvalidReference(WeightlessError):
    """The text is not an OCI reference."""

    kind = "invalid_reference"
    usual_fix = "write it as host[:port]/repository[:tag][@digest], for example registry.example.com/models/llama:v1"


class InvalidRequest(WeightlessError):
    """A parameter, attribute, option or path is missing, unknown or malformed."""

    kind = "invalid_request"
    usual_fix = "correct what is named here, and try again"


class InvalidConfig(WeightlessError):
    """A configuration file (hosts.toml, config.json, weightless.toml) cannot be used."""

    kind = "invalid_config"
    usual_fix = "mend or remove what is named here; docs/CONFIGURATION.md describes it"


class NotFound(WeightlessError):
    """The repository, tag, manifest, blob or volume does not exist."""

    kind = "not_found"
    usual_fix = "check the spelling, and whether it was removed"


class Unauthenticated(WeightlessError):
    """The registry asks for credentials, or does not accept those given (401)."""

    kind = "unauthenticated"
    usual_fix = (
        "log in to this registry with docker login; in a pod, name a secret for it in the volume's nodePublishSecretRef"
    )


class Forbidden(WeightlessError):
    """The credentials are known but may not pull this (403)."""

    kind = "forbidden"
    usual_fix = (
        "ask the registry's owner for the right to pull this, or use other credentials (docker login; "
        "in a pod, nodePublishSecretRef)"
    )


class AddressRefused(WeightlessError):
    """The administrator's rules do not let this process talk to that address."""

    kind = "address_refused"
    usual_fix = "an administrator can allow this host by naming it in hosts.toml"


class Unavailable(WeightlessError):
    """A registry, name server or network does not answer now; trying again may help."""

    kind = "unavailable"
    usual_fix = (
        "try again in a moment; if it stays so, check that what is named here runs and can be reached from this machine"
    )
    temporary = True

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        retry_after_s: float | None = None,
        answered: bool = False,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.answered = answered
        """It can be reached, and only does not want to now (429); does not travel in a `Fault`."""
        self.retry_after_s = retry_after_s
        """What the other side asked for (Retry-After); does not travel in a `Fault`."""


class NotAModel(WeightlessError):
    """The artifact is well-formed, but of a kind that is not understood (yet)."""

    kind = "not_a_model"
    usual_fix = "use an artifact that was packed as a ModelPack, or pushed with oras push"


class InvalidArtifact(WeightlessError):
    """A manifest, index, config, tar header or file name breaks its specification or our limits."""

    kind = "invalid_artifact"
    usual_fix = "the artifact itself is at fault: pack it again and push it again"


class Corrupt(WeightlessError):
    """Bytes do not match the digest that names them."""

    kind = "corrupt"
    usual_fix = "the content is wrong where it comes from: remove it from the registry or mirror, and push it again"


class Unverified(WeightlessError):
    """Bytes may not be served before they are proven, and the proof has not come yet."""

    kind = "unverified"
    usual_fix = "wait, or push a chunk index with `weightless index`"
    temporary = True


class NoSpace(WeightlessError):
    """The cache disk or its quota is full."""

    kind = "no_space"
    usual_fix = "free space on the disk of the cache, or put the cache on a larger one (--cache-dir)"
    temporary = True


class CacheFailed(WeightlessError):
    """The cache's disk fails, is read-only, or has gone; reads go on without it."""

    kind = "cache_failed"
    usual_fix = "look at the cache's disk and its file system (dmesg); it goes on by itself when it can be written"
    temporary = True


class Conflict(WeightlessError):
    """The thing exists already, with other parameters."""

    kind = "conflict"
    usual_fix = "unmount or end first what is there"


class InProgress(WeightlessError):
    """Another operation on the same volume is under way."""

    kind = "in_progress"
    usual_fix = "wait until it is done, then try again; kubelet does so by itself"
    temporary = True


class Cancelled(WeightlessError):
    """The operation was given up because its negation was asked for."""

    kind = "cancelled"
    usual_fix = "ask again, if it is still wanted"
    temporary = True


class MountFailed(WeightlessError):
    """The kernel, or a helper, refused to mount or unmount."""

    kind = "mount_failed"
    usual_fix = "the kernel's log (dmesg) and the log of weightless say more"


class Missing(WeightlessError):
    """A program, device or right that the operation needs is not there on this system."""

    kind = "missing"
    usual_fix = "install or permit what is named here"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def every_error() -> dict[str, type[WeightlessError]]:
    """All error classes by kind; the base stands for what no class names ("internal")."""
    found = {WeightlessError.kind: WeightlessError}
    pending = [WeightlessError]
    while pending:
        for cls in pending.pop().__subclasses__():
            found[cls.kind] = cls
            pending.append(cls)
    return found


def from_fault(fault: Fault) -> WeightlessError:
    """The error that `fault` carries.

    An unknown kind (of a newer version) becomes the base class; one without a fix (of an older version) gets the usual one.
    """
    cls = every_error().get(fault.kind, WeightlessError)
    return cls(fault.what, where=fault.where, fix=fault.fix)
