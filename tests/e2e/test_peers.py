"""A model through a peer-to-peer proxy that hosts.toml names, with the installed command."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.leaks import Sandbox
from tests.support.peer import Peer
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@pytest.fixture
def peer(packed: PackedModel) -> Iterator[Peer]:
    with Peer() as peer:
        packed.serve(peer, "models/small", "1.0")
        yield peer


@pytest.fixture
def cli(sandbox: Sandbox, registry: FaultyRegistry, reference: str, peer: Peer) -> CommandLine:
    """`reference` is served by the registry; the peer stands before it."""
    certs_dir = sandbox.directory("certs")
    (certs_dir / registry.host).mkdir()
    (certs_dir / registry.host / "hosts.toml").write_text(
        f'server = "{registry.url}"\n[host."{peer.url}"]\n[host."{peer.url}".header]\n'
        f'X-Dragonfly-Registry = "{registry.url}"\n'
    )
    return CommandLine(sandbox, ("--certs-dir", str(certs_dir)))


def sums(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_model_comes_from_the_peer_alone(
    cli: CommandLine, registry: FaultyRegistry, reference: str, peer: Peer
) -> None:
    """Every blob, by the registry's URL and with its name; what nobody waits for says so."""
    cli.do("pull", reference)

    assert not registry.requests("blob")
    asked = [entry.request for entry in peer.requests("blob")]
    assert {registry.host} == {request.query.get("ns") for request in asked}
    assert "3" in peer.priorities()


def test_a_peer_that_dies_under_a_mount_costs_no_reader_an_error(
    cli: CommandLine, registry: FaultyRegistry, reference: str, peer: Peer, small_model: Path
) -> None:
    """The registry gives what is missing, and every sum is right."""
    peer.rate.bytes_per_s = 8e6
    with cli.mounted(reference, "--prefetch", "full") as mounted:
        until(lambda: peer.statistics().bytes_sent > 4 << 20, "bytes of the peer")
        peer.stop()

        assert sums(small_model) == sums(mounted)
    assert registry.requests("blob")
