from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.csi.fakes import FakeManager
from tests.csi.harness import Place
from tests.csi.real import end_processes


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Directories of a plugin; the path is short, since a socket lies in it."""
    made = Place(tmp_path_factory.mktemp("k"))
    yield made
    end_processes(made)
    made.clear()


@pytest.fixture
def manager() -> FakeManager:
    return FakeManager()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path
