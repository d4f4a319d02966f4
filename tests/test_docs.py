"""What the documentation shows is accepted by what it documents."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from typer.main import get_command

from csi import attributes
from csi.identity import DRIVER_NAME
from csi.kubernetes.events import EventReason
from fuse.credentials import providerconfig
from fuse.credentials.given import RUNGS
from fuse.mounting.reasons import Reason
from fuse.mounting.status import Health, MountStatus, Restarts
from fuse.registry.hosts import load_access
from fuse.registry.peers import speaks_dragonfly
from weightless import config
from weightless.app import app

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


OTHERS = ("snapshot_download", "config_path")
"""Names in pages that are not ours."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository, and a heading of it if it names one."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text())
    assert [] == [link for link, _ in links if not (page.parent / link).exists()]
    for link, anchor in links:
        assert not anchor or anchor in anchors(page.parent / link if link else page), (link, anchor)


def test_the_readme_is_short_and_two_clicks_lead_everywhere() -> None:
    """Each page is linked to by the README, or by a page that it links to."""
    readme = ROOT / "README.md"
    assert len(readme.read_text().split()) < 1200

    def linked(page: Path) -> set[Path]:
        found = re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", page.read_text())
        return {(page.parent / each).resolve() for each in found}

    near = linked(readme)
    reached = near.union(*(linked(page) for page in near if page.name != "CHANGELOG.md"))
    assert {page.resolve() for page in PAGES} - {readme} - reached == set()


@pytest.mark.parametrize("text", blocks(ROOT / "README.md", "yaml"), ids=lambda text: yaml.safe_load(text)["kind"])
def test_manifests_are_valid_and_their_attributes_are_understood(text: str) -> None:
    """The README's pod passes Kubernetes' schemas and our own parser; volumes.md is looked at by tests/deploy/test_pages.py."""
    document = yaml.safe_load(text)
    kubernetes_validate.validate(document, "1.33", strict=True)
    for csi in _volumes(document):
        assert csi["driver"] == "csi.weightless.dev"
        assert attributes.parse(csi["volumeAttributes"]).reference


def test_the_configuration_file_is_accepted(tmp_path: Path) -> None:
    """The example of CONFIGURATION.md has no key that is unknown."""
    text, _ = blocks(ROOT / "docs" / "CONFIGURATION.md", "toml")
    file = tmp_path / "weightless.toml"
    file.write_text(text)
    assert config.load(file).quota_bytes == 500 * 10**9


def test_the_hosts_toml_is_accepted(tmp_path: Path) -> None:
    """The mirror of CONFIGURATION.md is asked before the registry itself."""
    _, text = blocks(ROOT / "docs" / "CONFIGURATION.md", "toml")
    assert tomllib.loads(text)
    place = tmp_path / "registry.example.com"
    place.mkdir()
    (place / "hosts.toml").write_text(text)
    (place / "mirror-ca.crt").write_text("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n")
    access = load_access(
        "registry.example.com",
        certs_dir=tmp_path,
        plain_http=False,
        credential=lambda _host: None,
        local_allowed=False,
    )
    hosts = [endpoint.url.split("/")[2] for endpoint in access.endpoints]
    assert hosts == ["mirror.internal:5000", "registry.example.com"]


def test_the_ways_to_credentials_are_accepted(tmp_path: Path) -> None:
    """credentials.md: the configurations, the CSIDriver, kubelet's file, and the volume that names a secret."""
    page = ROOT / "docs" / "credentials.md"
    for text in blocks(page, "toml"):
        (tmp_path / "weightless.toml").write_text(text)
        assert config.load(tmp_path / "weightless.toml").credentials != config.CredentialsSection()
    driver, providers, volume = (text for text in blocks(page, "yaml") if not text.startswith("# values.yaml"))
    kubernetes_validate.validate(yaml.safe_load(driver), "1.35", strict=True)
    (tmp_path / "providers.yaml").write_text(providers)
    (provider,) = providerconfig.load(tmp_path / "providers.yaml")
    assert provider.token_attributes is not None
    (request,) = yaml.safe_load(driver)["spec"]["tokenRequests"]
    assert request["audience"] == provider.token_attributes.service_account_token_audience
    (source,) = yaml.safe_load(volume)["volumes"]
    assert attributes.parse(source["csi"]["volumeAttributes"]).reference
    rungs = re.findall(r"^\| `([a-z][a-z-]+)` \|", page.read_text(), re.MULTILINE)
    assert list(RUNGS) == rungs


@pytest.mark.parametrize("text", blocks(ROOT / "docs" / "MIRRORS.md", "toml"), ids=["dragonfly", "spegel"])
def test_the_peers_of_the_documentation_are_accepted(text: str, tmp_path: Path) -> None:
    """Each stands before the registry, whose name it is told; only Dragonfly is taken for one."""
    place = tmp_path / "registry.example.com"
    place.mkdir()
    (place / "hosts.toml").write_text(text)
    peer, origin = load_access(
        place.name, certs_dir=tmp_path, plain_http=False, credential=lambda _host: None, local_allowed=False
    ).endpoints

    assert (peer.namespace, origin.url) == (place.name, f"https://{place.name}/v2")
    assert ("Dragonfly" in text) == speaks_dragonfly(peer)


def test_the_table_of_commands_is_complete() -> None:
    """Each command of the program stands in commands.md, and no other."""
    table = (ROOT / "docs" / "commands.md").read_text().partition("\n## ")[0]
    named = set(re.findall(r"^\| `weightless (\w+)", table, re.MULTILINE))
    commands = get_command(app).commands  # type: ignore[attr-defined]  # a group
    shown = {name for name, command in commands.items() if not command.hidden}
    assert named == shown - {"version"}


def shown_commands(page: Path) -> list[list[str]]:
    """The words after `weightless` of each line that a code block has people type, also behind `kubectl exec`."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language:
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            typed = re.match(r"(?:\$ )?(?:kubectl .* -- )?(?:weightless (?=[a-z]))(.*)", line)
            if typed:
                words = shlex.split(re.split(r" [|;&>] ?| …", typed[1])[0], comments=True)
                found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page: Path) -> None:
    """Each has a name and options that the program knows, and is not one that is only kept for old manifests."""
    for words in shown_commands(page):
        command: Any = get_command(app)
        rest = list(words)
        while hasattr(command, "commands"):
            name = rest.pop(0)
            assert name in command.commands, (page.name, words)
            command = command.commands[name]
        assert not command.hidden, (page.name, words)
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options, (page.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_that_sentences_name_exist(page: Path) -> None:
    """`[section] key` is one of weightless.toml; a command in a sentence is one of today's."""
    text = page.read_text()
    sections = {field.encode_name: field.type for field in msgspec.structs.fields(config.Config)}
    for section, key in re.findall(r"`\[([a-z]+)\] ([a-z-]+)", text):
        assert key in {field.encode_name for field in msgspec.structs.fields(sections[section])}, (section, key)
    commands = get_command(app).commands  # type: ignore[attr-defined]  # a group
    for line in text.splitlines():
        for name in re.findall(r"`weightless ([a-z]+)", line):
            assert name in commands, name
            assert not commands[name].hidden or "older name" in line or "still works" in line, line


def test_names_of_the_source_are_in_it() -> None:
    """Events of the log, reasons, metrics and fields that a sentence names, and files: a search for them finds something."""
    folders = [ROOT / name for name in ("fuse", "csi", "weightless", "deploy")]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".yaml", ".json")]
    source = "\n".join(file.read_text() for file in files)
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text):
            found = name.removesuffix("_total") in source
            assert found or name.startswith("process_") or name.endswith("_t") or name in OTHERS, (page.name, name)
        for path in re.findall(r"`((?:fuse|csi|weightless|tests|scripts|deploy)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), (page.name, path)


def test_the_taint_has_one_name() -> None:
    """In the pages, the chart and the program's own help: a node whose taint nobody removes gets no pod, ever."""
    files = [*PAGES, ROOT / "weightless" / "config.py", ROOT / "deploy" / "chart" / "values.yaml"]
    named = {name for file in files for name in re.findall(r"[\w.…]*/agent-not-ready", file.read_text())}
    assert named == {f"{DRIVER_NAME}/agent-not-ready"}


def test_the_table_of_attributes_is_complete() -> None:
    """volumes.md has a row for each attribute that a volume may have."""
    section = (ROOT / "docs" / "volumes.md").read_text().partition("\n## Attributes\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(attributes.KNOWN)


def test_every_reason_has_its_section() -> None:
    """OPERATIONS.md explains what a condition, a metric or a line of the log may name, and nothing that none of them names."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    section = text.partition("\n## Reasons\n")[2].partition("\n## ")[0]
    pages = re.findall(r"^### (\w+)\n\n((?:(?!^### ).*\n?)*)", section, re.MULTILINE)
    assert [reason.value for reason in Reason] == [name for name, _ in pages]
    for name, page in pages:
        assert "*Seen:*" in page, name
        if name != Reason.UNKNOWN:
            assert "*Pods:*" in page, name
            assert "*Cure:*" in page, name


def test_every_event_has_its_row() -> None:
    """OPERATIONS.md lists what a pod's owner may be told, and nothing else."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    table = text.partition("\n## Events of the pod\n")[2].partition("\n## ")[0]
    assert [reason.value for reason in EventReason] == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_every_field_of_the_status_is_explained() -> None:
    """The table of OPERATIONS.md has each field of `weightless status --json`, those of the condition included."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    table = text.partition("Fields of each entry:")[2].partition("### The log")[0]
    named = set(re.findall(r"`(\w+)`", table)) - {"full", "none"}
    kinds = (MountStatus, Health, Restarts)
    fields = {"since_iso", *(name for kind in kinds for name in kind.__struct_fields__)}
    assert fields == named


def _volumes(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document.get("spec", {})
    return [volume["csi"] for volume in (spec, *spec.get("volumes", ())) if "csi" in volume]
