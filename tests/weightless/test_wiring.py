"""What the configuration says reaches the part that it is meant for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fuse.errors import InvalidConfig
from fuse.fetch.limits import RegistryLimits
from fuse.fetch.settings import FetcherSettings
from fuse.mounting import overlay, selinux
from weightless import config, wiring
from weightless.options import Settings

TEXT = """
[fetch]
connections = 5
max-bandwidth = "7MB"
[fetch.registry."registry.example.com"]
connections = 3
"""


def test_limits_reach_the_fetcher_whoever_starts_it(tmp_path: Path) -> None:
    """A command of its own, or the holder of a mount, which gets the settings as JSON."""
    file = tmp_path / "weightless.toml"
    file.write_text(TEXT)
    settings = Settings(cache_path="/c", certs_path=None, config=config.load(file))
    travelled = msgspec.json.decode(msgspec.json.encode(settings), type=Settings)
    holder = wiring.holder_settings(travelled, tmp_path, name="n", log_to_stderr=False)

    for starter in (wiring.fetcher_settings(settings, tmp_path), holder.fetcher()):
        told = msgspec.json.decode(starter.argument(), type=FetcherSettings)
        own = {"registry.example.com": RegistryLimits(connections=3)}
        assert (5, 7_000_000, own) == (told.connections, told.bytes_per_s, told.registries)


def test_credentials_reach_the_node_plugin_and_no_command(tmp_path: Path) -> None:
    """Pods have what [credentials] allows; a person has what docker has."""
    file = tmp_path / "weightless.toml"
    file.write_text(f'[credentials]\nallow = ["publish-secret"]\ndocker-config = "{tmp_path}"\n')
    settings = Settings(cache_path="/c", certs_path=None, config=config.load(file))

    node = wiring.access_reader(settings, local_allowed=False)
    assert node.credentials is not None
    assert [True, False] == [node.credentials.allows(rung) for rung in ("publish-secret", "driver-secret")]
    assert wiring.access_reader(settings).credentials is None


@pytest.mark.parametrize(
    "section",
    ['docker-config = "/nowhere"', 'provider-config = "/nowhere.yaml"\nprovider-bin-dir = "/nowhere"'],
)
def test_what_is_named_and_missing_is_told_at_the_start(tmp_path: Path, section: str) -> None:
    """Not by the first pod that would have needed it."""
    file = tmp_path / "weightless.toml"
    file.write_text(f"[credentials]\n{section}\n")
    settings = Settings(cache_path="/c", certs_path=None, config=config.load(file))

    with pytest.raises(InvalidConfig, match="/nowhere"):
        wiring.access_reader(settings, local_allowed=False)


@pytest.mark.parametrize(
    ("text", "user", "kernel", "expected"),
    [
        ("", 0, True, True),
        ('[cache]\nnative-copies = "auto"', 0, True, True),
        ('[cache]\nnative-copies = "off"', 0, True, False),
        ('[mount]\nnative = "off"', 0, True, False),
        ("", 1000, True, False),
        ("", 0, False, False),
    ],
)
def test_copies_are_made_where_native_mounts_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, user: int, kernel: bool, expected: bool
) -> None:
    """They take room on the disk: not without a kernel and a user who could show them."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr(overlay, "kernel_can", lambda: kernel)
    file = tmp_path / "weightless.toml"
    file.write_text(text)
    settings = Settings(cache_path="/c", certs_path=None, config=config.load(file))
    assert expected == wiring.holder_settings(settings, tmp_path, name="n", log_to_stderr=False).copy_out


@pytest.mark.parametrize(("active", "expected"), [(True, selinux.FOR_CONTAINERS), (False, "")])
def test_a_label_is_for_nodes_with_selinux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: bool, expected: str
) -> None:
    """One configuration is for all nodes."""
    monkeypatch.setattr(selinux, "active", lambda: active)
    file = tmp_path / "weightless.toml"
    file.write_text(f'[mount]\nselinux-context = "{selinux.FOR_CONTAINERS}"\n')
    settings = Settings(cache_path="/c", certs_path=None, config=config.load(file))
    assert wiring.holder_settings(settings, tmp_path, name="n", log_to_stderr=False).label == expected
