"""weightless.toml: what it may say, and what happens when it says something else."""

from __future__ import annotations

import pytest

from fuse.errors import InvalidConfig
from fuse.fetch.limits import RegistryLimits
from weightless import config


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "weightless.toml"
        path.write_text(text)
        return path

    return write


def test_every_key_of_the_documentation_is_understood(write):
    """The example in the module's docstring is a valid file."""
    example = config.__doc__.split("```toml")[1].split("```")[0]

    loaded = config.load(write(example))

    assert 500 * 10**9 == loaded.quota_bytes
    assert "worker-1" == loaded.node.node_id
    assert (8, 10**9) == (loaded.fetch.connections, loaded.fetch.bytes_per_s)
    assert {"registry.example.com": RegistryLimits(connections=4, bytes_per_s=200 * 10**6)} == loaded.fetch.registries


def test_an_empty_file_says_nothing(write):
    """Every key is optional."""
    assert config.Config() == config.load(write(""))


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        ('cach-dir = "/x"', "'cach-dir'", "cache-dir"),
        ('cache_dir = "/x"', "'cache_dir'", "cache-dir"),
        ("[cache]\nqouta = 1", "'qouta' in [cache]", "quota, free-space"),
        ("[nodes]\n", "'nodes'", "node"),
        ('[fetch.registry."a.b"]\nmax-bandwith = 1', "'max-bandwith' in [fetch.registry.\"a.b\"]", "max-bandwidth"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_file_key_and_the_known_ones(write, text, key, known):
    """A misspelt limit is not silently ignored."""
    path = write(text)

    with pytest.raises(InvalidConfig) as caught:
        config.load(path)

    assert str(path) == caught.value.where
    assert key in caught.value.what
    assert known in caught.value.fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('prefetch = "some"', "prefetch"),
        ('plain-http = "yes"', "plain-http"),
        ("[cache]\nfree-space = 2", "cache.free-space"),
        ('[cache]\nquota = "12 parsecs"', "cache.quota"),
        ("[fetch]\nconnections = 0", "fetch.connections"),
        ("[node]\nmax-volumes = -1", "node.max-volumes"),
        ("[controller]\nendpoint = 1", "controller.endpoint"),
        ('[fetch]\nmax-bandwidth = "fast"', "fetch.max-bandwidth: 'fast' is not a size"),
        ('[fetch]\nmax-bandwidth = "10kB"', "fetch.max-bandwidth: '10kB' is too little"),
        ("[fetch]\nmax-bandwidth = 0", "fetch.max-bandwidth: 0 is too little"),
        ("[fetch]\nmax-bandwidth = -5", "fetch.max-bandwidth: '-5' is not a size"),
        ("[fetch]\nmax-bandwidth = [1]", "fetch.max-bandwidth"),
        ('[fetch.registry."a.b"]\nmax-bandwidth = "1B"', 'fetch.registry."a.b".max-bandwidth: '),
        ('[fetch.registry."a.b"]\nconnections = 500', "connections"),
        ('[fetch.registry."http://a.b"]', 'fetch.registry."http://a.b": no reference'),
        ('[fetch.registry."index.docker.io"]', "no reference has this registry"),
        ("[fetch]\nregistry = 3", "fetch.registry"),
        ('[credentials]\nallow = ["everything"]', "credentials.allow"),
        ("[credentials]\nallow = []", "credentials.allow: nothing is allowed"),
        ('[credentials]\nprovider-config = "/x"', "credentials: provider-config and provider-bin-dir go together"),
        ("[credentials]\nprovider-user = -1", "credentials.provider-user"),
        ('[registry]\nallowed = ["https://a.b"]', "registry.allowed: 'https://a.b' is no pattern"),
        ('[registry]\nallowed = ["a.b/c:latest"]', "registry.allowed: 'a.b/c:latest' is no pattern"),
        ('[registry]\nallowed = ["a.b/*"]', "registry.allowed: 'a.b/*' is no pattern"),
        ('[registry]\nallowed = "a.b"', "registry.allowed"),
        ('[mount]\nselinux-context = "container_file_t"', "mount.selinux-context: it is no SELinux context"),
        ("[mount]\nselinux-context = 1", "mount.selinux-context"),
        ("cache = 1", "cache"),
        ("prefetch = ", "is not TOML"),
    ],
)
def test_a_bad_value_is_an_error_that_names_file_and_key(write, text, words):
    """Wrong types, values out of range and what is no TOML at all."""
    path = write(text)

    with pytest.raises(InvalidConfig) as caught:
        config.load(path)

    assert str(path) == caught.value.where
    assert words in caught.value.what


def test_a_bandwidth_is_written_as_a_size(write):
    """A second is meant, whether it is said or not; what is not said is no limit."""
    written = ('"200MB"', '"200MB/s"', '"200 MB"', "200000000")

    assert {200 * 10**6} == {
        config.load(write(f"[fetch]\nmax-bandwidth = {text}")).fetch.bytes_per_s for text in written
    }
    assert 0 == config.load(write("[fetch]\n")).fetch.bytes_per_s
    assert {"localhost:5000": RegistryLimits()} == config.load(
        write('[fetch.registry."localhost:5000"]')
    ).fetch.registries


def test_a_word_that_is_none_of_a_few_is_answered_with_those_few(write):
    """As on the command line; nobody should have to look them up."""
    for text, words in (
        ('prefetch = "some"', ("full", "none")),
        ('log-level = "loud"', ("debug", "warning")),
        ('[credentials]\nallow = ["pods"]', ("pod-identity", "anonymous")),
    ):
        with pytest.raises(InvalidConfig) as caught:
            config.load(write(text))
        assert [] == [word for word in words if word not in str(caught.value)]


def test_a_file_that_is_named_and_missing_is_an_error(tmp_path, monkeypatch):
    """By --config and by the environment; only the default places may be empty."""
    with pytest.raises(InvalidConfig):
        config.load(tmp_path / "none.toml")
    monkeypatch.setenv(config.ENVIRONMENT, str(tmp_path / "none.toml"))
    with pytest.raises(InvalidConfig):
        config.load(None)
