"""What the pages about clusters tell people to write and to type is accepted: manifests, values, helm's settings."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from csi import attributes
from csi.identity import DRIVER_NAME
from tests.deploy.chart import CHART, ROOT, Helm, Objects
from weightless import config

pytestmark = pytest.mark.timeout(600)

PAGES = [
    ROOT / "deploy" / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("getting-started", "sizing", "troubleshooting", "upgrade", "volumes")),
]
VALUES = [
    ROOT / "docs" / f"{name}.md" for name in ("CONFIGURATION", "MIRRORS", "OPERATIONS", "credentials", "platforms")
]
"""Pages of which the chart's values are looked at here, and the rest by tests/test_docs.py."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def all_blocks() -> list[Any]:
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in [*PAGES, *VALUES]
        for number, text in enumerate(blocks(page, "yaml"))
        if page in PAGES or text.startswith("# values.yaml")
    ]


@pytest.mark.parametrize("text", all_blocks())
def test_what_is_shown_is_accepted(helm: Helm, text: str, tmp_path: Path) -> None:
    """Manifests by Kubernetes' schemas and, for attributes, by the driver; values by the chart, then the driver."""
    if text.startswith("# values.yaml"):
        (tmp_path / "values.yaml").write_text(text)
        answer = helm.run("template", "x", CHART, "--kube-version=1.34", f"--values={tmp_path / 'values.yaml'}")
        assert answer.returncode == 0, answer.stderr
        files = [
            each.get("data", {}) for each in yaml.safe_load_all(answer.stdout) if each and each["kind"] == "ConfigMap"
        ]
        (written,) = (data["weightless.toml"] for data in files if "weightless.toml" in data)
        (tmp_path / "weightless.toml").write_text(written)
        assert config.load(tmp_path / "weightless.toml") != config.Config()
        return
    document = yaml.safe_load(text)
    kubernetes_validate.validate(document, "1.34", strict=True)
    spec = document.get("spec", {})
    for volume in (spec, *spec.get("volumes", ())):
        if "csi" in volume:
            assert volume["csi"]["driver"] == DRIVER_NAME
            assert attributes.parse(volume["csi"]["volumeAttributes"]).reference


def test_each_kind_of_volume_is_shown() -> None:
    """One manifest each at least."""
    (page,) = [page for page in PAGES if page.stem == "volumes"]
    found = [yaml.safe_load(text) for text in blocks(page, "yaml")]
    kinds = {document.get("kind") for document in found}
    inside = {key for document in found for volume in document.get("spec", {}).get("volumes", ()) for key in volume}

    assert {"Pod", "PersistentVolume", "PersistentVolumeClaim", "StorageClass"} <= kinds
    assert {"csi", "ephemeral"} <= inside


@pytest.mark.parametrize("page", [*PAGES, *VALUES], ids=lambda page: page.stem)
def test_settings_of_helm_are_known(helm: Helm, page: Path) -> None:
    """Those of commands, and those that a sentence names with their value."""
    text = page.read_text()
    settings = [
        word
        for line in re.finditer(r"^helm .*$|`--set [^`]*`", text, re.MULTILINE)
        for before, word in pairwise(shlex.split(line[0].strip("`")))
        if before == "--set"
    ]
    settings += [f"{key}={value}" for key, value in re.findall(r"`([a-z]\w*(?:\.\w+)+): ([^`]+)`", text)]
    for setting in settings:
        answer = helm.run(
            "template", "x", CHART, "--kube-version=1.34", "--set=image.repository=x", "--set", setting.replace('"', "")
        )
        assert answer.returncode == 0, (setting, answer.stderr)


def test_the_list_of_images_is_complete(default: Objects) -> None:
    """Who has no internet copies these."""
    page = (ROOT / "docs" / "platforms.md").read_text()
    (shown,) = re.findall(r"^\$ helm template [^\n]*\n((?:\S+/\S+\n)+)", page, re.MULTILINE)
    needed = {container["image"] for container in default.containers().values()}

    assert {image.removeprefix("registry.example.com/") for image in shown.split()} == needed


def test_values_that_pages_name_exist() -> None:
    """A dotted name in code is a key of values.yaml."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    roots = "|".join(key for key, value in values.items() if isinstance(value, dict) and value)
    for page in [*PAGES, *VALUES]:
        for name in re.findall(rf"`((?:{roots})(?:\.\w+)+)`", page.read_text()):
            found: Any = values
            for part in name.split("."):
                assert part in found, (page.name, name)
                found = found[part]
