"""The errno table has no holes and nothing too much."""

from __future__ import annotations

import errno

from fuse.errors import Corrupt, Forbidden, InvalidRequest, NotFound, WeightlessError, every_error
from fuse.worker.errnos import ERRNOS, errno_of

CANNOT_HEAL = (Corrupt, Forbidden, InvalidRequest, NotFound, WeightlessError)


def test_every_error_has_exactly_one_number() -> None:
    """A new error class needs an entry, and an entry needs a class."""
    assert set(every_error()) == set(ERRNOS)


def test_what_cannot_heal_is_an_input_output_error() -> None:
    """The name is there and may be read: neither ENOENT nor EACCES would be true."""
    assert {errno.EIO} == {errno_of(error("x")) for error in CANNOT_HEAL}
