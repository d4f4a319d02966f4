from __future__ import annotations

import subprocess

import pytest

from tests.conftest import need
from tests.deploy.chart import ROOT, Helm, Objects


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The real helm; built from its Go module where there is none, which takes a minute or two."""
    found = subprocess.run([ROOT / "scripts" / "helm.sh"], capture_output=True, text=True, check=False, timeout=580)
    need(found.returncode == 0, f"there is no helm: {found.stderr[-300:]}")
    return Helm(found.stdout.strip())


@pytest.fixture(scope="session")
def full(helm: Helm) -> Objects:
    return helm.objects("full")


@pytest.fixture(scope="session")
def default(helm: Helm) -> Objects:
    """With nothing said but where the image is."""
    return helm.objects("default")
