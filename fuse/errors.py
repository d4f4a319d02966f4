"""What can go wrong, as types: one class for each cause that an operator would treat differently.

An error says *what* was wrong, *where* (a reference, a URL, a path, a digest) and how to *fix* it. Errors cross process
borders (fetcher to plugin to kubelet), so each class has a stable `kind` and travels as a `Fault`. Nothing here knows
errno or gRPC codes: `fuse/worker/errnos.py` and `csi/status.py` own those two tables.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A `WeightlessError` on the wire."""

    kind: str
    what: str
    where: str = ""
    fix: str = ""


class WeightlessError(Exception):
    """Base of all errors that are meant to be read by a person.

    `what` names the cause, `where` the thing it happened to, `fix` what the reader can do. None of them may hold a secret.
    """

    kind: ClassVar[str] = "internal"
    temporary: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.fix})" if self.fix else text

    def to_fault(self) -> Fault:
        return Fault(kind=self.kind, what=self.what, where=self.where, fix=self.fix)


class InvalidReference(WeightlessError):
    """The text is not an OCI reference."""

    kind = "invalid_reference"


class InvalidRequest(WeightlessError):
    """A parameter, attribute, option or path is missing, unknown or malformed."""

    kind = "invalid_request"


class InvalidConfig(WeightlessError):
    """A configuration file (hosts.toml, config.json, weightless.toml) cannot be used."""

    kind = "invalid_config"


class NotFound(WeightlessError):
    """The repository, tag, manifest, blob or volume does not exist."""

    kind = "not_found"


class Unauthenticated(WeightlessError):
    """The registry asks for credentials, or does not accept those given (401)."""

    kind = "unauthenticated"


class Forbidden(WeightlessError):
    """The credentials are known but may not pull this (403)."""

    kind = "forbidden"


class AddressRefused(WeightlessError):
    """The administrator's rules do not let this process talk to that address."""

    kind = "address_refused"


class Unavailable(WeightlessError):
    """A registry, name server or network does not answer now; trying again may help."""

    kind = "unavailable"
    temporary = True

    def __init__(self, what: str, *, where: str = "", fix: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(what, where=where, fix=fix)
        self.retry_after_s = retry_after_s
        """What the other side asked for (Retry-After); does not travel in a `Fault`."""


class NotAModel(WeightlessError):
    """The artifact is well-formed, but of a kind that is not understood (yet)."""

    kind = "not_a_model"


class InvalidArtifact(WeightlessError):
    """A manifest, index, config, tar header or file name breaks its specification or our limits."""

    kind = "invalid_artifact"


class Corrupt(WeightlessError):
    """Bytes do not match the digest that names them."""

    kind = "corrupt"


class NoSpace(WeightlessError):
    """The cache disk or its quota is full."""

    kind = "no_space"
    temporary = True


class Conflict(WeightlessError):
    """The thing exists already, with other parameters."""

    kind = "conflict"


class InProgress(WeightlessError):
    """Another operation on the same volume is under way."""

    kind = "in_progress"
    temporary = True


class Cancelled(WeightlessError):
    """The operation was given up because its negation was asked for."""

    kind = "cancelled"
    temporary = True


class MountFailed(WeightlessError):
    """The kernel, or a helper, refused to mount or unmount."""

    kind = "mount_failed"


class Missing(WeightlessError):
    """A program, device or right that the operation needs is not there on this system."""

    kind = "missing"


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
    """The error that `fault` carries; an unknown kind (of a newer version) becomes the base class."""
    cls = every_error().get(fault.kind, WeightlessError)
    return cls(fault.what, where=fault.where, fix=fault.fix)
