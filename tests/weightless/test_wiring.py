"""What the configuration says reaches the part that it is meant for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fuse.fetch.limits import RegistryLimits
from fuse.fetch.settings import FetcherSettings
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
