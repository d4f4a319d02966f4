from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.provider import Programs


@pytest.fixture
def programs() -> Iterator[Programs]:
    """Not below pytest's directory, which is root's alone: programs run as somebody else."""
    with tempfile.TemporaryDirectory(prefix="wl-", dir="/tmp") as directory:
        yield Programs(Path(directory))
