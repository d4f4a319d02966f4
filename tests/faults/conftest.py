"""What the fault suite needs of the machine."""

from __future__ import annotations

import platform

import pytest

from tests.conftest import need


@pytest.fixture(autouse=True)
def _resend(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kernel"):
        major, minor = (int(part) for part in platform.release().split(".")[:2])
        need((major, minor) >= (6, 9), "taking over a mount without a failed read needs kernel 6.9")
