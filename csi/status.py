"""The one table from errors to gRPC status codes, chosen by what kubelet does with them.

Kubelet takes CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED and ABORTED to mean "perhaps mounted": it tries
again, or unpublishes. Every other code means "certainly not mounted" (kubernetes, pkg/volume/csi/csi_client.go, isFinalError),
so nothing may be left behind then.
"""

from __future__ import annotations

from typing import Final

import grpc

from fuse import errors
from fuse.errors import WeightlessError

CODES: Final[dict[type[WeightlessError], grpc.StatusCode]] = {
    errors.InvalidReference: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    # The node's configuration, not the request: kubelet may try again once the administrator has mended it.
    errors.InvalidConfig: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.AddressRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NotAModel: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvalidArtifact: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Unverified: grpc.StatusCode.UNAVAILABLE,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.CacheFailed: grpc.StatusCode.UNAVAILABLE,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.InProgress: grpc.StatusCode.ABORTED,
    # The caller of the negation wanted this; whoever still waits for the original may ask again.
    errors.Cancelled: grpc.StatusCode.ABORTED,
    errors.MountFailed: grpc.StatusCode.INTERNAL,
    errors.Missing: grpc.StatusCode.FAILED_PRECONDITION,
    WeightlessError: grpc.StatusCode.INTERNAL,
}


def code_of(error: WeightlessError) -> grpc.StatusCode:
    """The code for `error`; that of the nearest base for a class that the table does not name."""
    for cls in type(error).__mro__:
        if issubclass(cls, WeightlessError) and cls in CODES:
            return CODES[cls]
    return grpc.StatusCode.INTERNAL
