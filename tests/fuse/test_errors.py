"""What every error has to say, and that it says so on the other side of a socket too."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from fuse import wire
from fuse.disk import unusable
from fuse.errors import (
    Fault,
    InvalidConfig,
    NoSpace,
    NotFound,
    Unavailable,
    WeightlessError,
    every_error,
    from_fault,
)
from fuse.fetch import protocol

OURS = {kind: cls for kind, cls in every_error().items() if cls.__module__ == "fuse.errors"}
every_class = pytest.mark.parametrize("cls", OURS.values(), ids=list(OURS))


@every_class
def test_every_class_has_a_usual_fix_of_its_own(cls: type[WeightlessError]) -> None:
    """One line that a person can act on: a class without one would inherit that of the internal error, which is a lie."""
    assert "usual_fix" in vars(cls)
    assert 15 < len(cls.usual_fix) < 160
    assert cls.usual_fix.isprintable()
    assert not cls.usual_fix.endswith(".")


@every_class
def test_an_error_without_a_fix_says_the_usual_one(cls: type[WeightlessError]) -> None:
    """In its text, which CSI shows, and as its `fix`, which the command line shows."""
    assert str(cls("what", where="where")) == f"where: what ({cls.usual_fix})"
    assert cls("what").fix == cls.usual_fix
    assert cls("what", fix="do this").fix == "do this"


@every_class
def test_a_fix_travels(cls: type[WeightlessError]) -> None:
    """A better text arrives as it was given; a peer that sends none (an older version) gets the usual one of the kind."""
    sent = msgspec.json.encode(cls("what", where="where", fix="do this").to_fault())
    arrived = from_fault(msgspec.json.decode(sent, type=Fault))
    assert (type(arrived), str(arrived)) == (cls, "where: what (do this)")
    assert from_fault(Fault(kind=cls.kind, what="what")).fix == cls.usual_fix


def test_what_travels_fits_into_a_message() -> None:
    """However long the name was that a stranger gave to a file, the refusal arrives."""
    sent = wire.encode(
        protocol.Refused(id=1, fault=NotFound("\0" * 10**6, where="é" * 10**6, fix="x" * 10**6).to_fault())
    )
    fault = msgspec.json.decode(sent, type=protocol.Refused).fault
    assert fault.where.startswith("ééé")
    assert fault.where.endswith("…")


def test_a_kind_of_a_newer_version_keeps_its_fix() -> None:
    """And the usual fix goes out in words, so that a version that knows none shows it."""
    assert str(from_fault(Fault(kind="melted", what="hot", fix="cool it"))) == "hot (cool it)"
    assert NotFound("gone").to_fault().fix == NotFound.usual_fix


def test_an_error_raised_again_loses_nothing() -> None:
    """Whatever class it is, and whatever that class remembers; only the place is another."""
    first = Unavailable("busy", where="a", fix="wait", retry_after_s=7.0)
    again = first.again(where="b")
    assert (type(again), again.what, again.where, again.fix) == (Unavailable, "busy", "b", "wait")
    assert again.retry_after_s == 7.0
    assert (first.where, first.again().where) == ("a", "a")


@pytest.mark.parametrize(
    ("number", "cls", "says"),
    [
        (errno.ENOSPC, NoSpace, "is full"),
        (errno.EDQUOT, NoSpace, "is full"),
        (errno.EROFS, InvalidConfig, "read-only file system"),
        (errno.ENOTDIR, InvalidConfig, "is a file"),
        (errno.EEXIST, InvalidConfig, "is a file"),
        (errno.EACCES, InvalidConfig, "may not write there"),
        (errno.EIO, InvalidConfig, "Input/output error"),
    ],
)
def test_a_directory_that_the_system_refuses(number: int, cls: type[WeightlessError], says: str) -> None:
    """A full disk is no matter of configuration; all else is, and where to choose another directory is in the fix."""
    error = unusable(OSError(number, errno.errorcode[number]), "the cache directory", Path("/x"), choice="--cache-dir")
    if number == errno.EIO:
        error = unusable(OSError(number, says), "the cache directory", Path("/x"), choice="--cache-dir")
    assert type(error) is cls
    assert error.where == "/x"
    assert says in error.what
    assert "--cache-dir" in error.fix
