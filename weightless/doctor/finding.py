"""What a check says."""

from __future__ import annotations

from typing import Literal

import msgspec

from fuse.errors import WeightlessError
from fuse.logs import scrub

State = Literal["ok", "warning", "broken", "skipped"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    check: str
    """What was looked at, in a word or two."""
    state: State
    """`broken`: volumes cannot be mounted or read. `warning`: they can, with less than there could be."""
    what: str
    cure: str = ""
    """What to do; empty when nothing is to be done."""


def ok(check: str, what: str) -> Finding:
    return Finding(check=check, state="ok", what=what)


def warning(check: str, what: str, cure: str) -> Finding:
    return Finding(check=check, state="warning", what=what, cure=cure)


def broken(check: str, what: str, cure: str) -> Finding:
    return Finding(check=check, state="broken", what=what, cure=cure)


def skipped(check: str, why: str) -> Finding:
    return Finding(check=check, state="skipped", what=why)


def failed(check: str, error: WeightlessError, state: State = "broken") -> Finding:
    """An error of ours says all that a finding says. It may quote a file, in which somebody wrote a password into a URL."""
    what = f"{error.where}: {error.what}" if error.where else error.what
    return Finding(check=check, state=state, what=scrub(what), cure=scrub(error.fix))
