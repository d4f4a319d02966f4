"""A real model from a real registry, pushed by tools that are not ours, read by the library that loads models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Registries
from tests.support.cli import CommandLine
from tests.support.dockerregistry import PASSWORD, DockerRegistry, docker_config
from tests.support.leaks import Sandbox
from tests.support.models import MINILM, digest_tree
from tests.support.node import Node

pytestmark = [pytest.mark.kernel, pytest.mark.slow]
WAYS = ("plain", "basic", "token")


# The last tensor first. In a process of its own: a page fault holds the interpreter lock, and here is the token service.
LOAD = """
import hashlib, sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="np") as file:
    for name in sorted(file.keys(), reverse=True):
        tensor = file.get_tensor(name)
        print(name, tensor.dtype, tensor.shape, hashlib.sha256(tensor.tobytes()).hexdigest())
"""


def tensors(directory: Path) -> list[str]:
    """Every tensor of the model's weights, as safetensors maps and loads it."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(directory / "model.safetensors")],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout.splitlines()


def prepare(way: str, registries: Registries, sandbox: Sandbox) -> tuple[DockerRegistry, Path]:
    """The registry, and a directory of hosts.toml files that name it; docker's configuration has the password."""
    registry: DockerRegistry = getattr(registries, way)
    certs_dir = sandbox.directory("certs")
    registry.write_hosts_toml(certs_dir)
    if way != "plain":
        docker_config(sandbox.docker, registry.host)
    return registry, certs_dir


@pytest.mark.parametrize("way", WAYS)
def test_minilm_is_the_same_through_the_mount_and_through_safetensors(
    way: str, registries: Registries, sandbox: Sandbox
) -> None:
    """Every file has the digest of the original, and mmapped tensors equal those read from it."""
    registry, certs_dir = prepare(way, registries, sandbox)
    cli = CommandLine(sandbox, ("--certs-dir", str(certs_dir)))

    with cli.mounted(registry.reference("models/minilm", "1.0")) as mounted:
        assert tensors(MINILM) == tensors(mounted)
        assert digest_tree(MINILM) == digest_tree(mounted)


@pytest.mark.parametrize("way", WAYS)
def test_minilm_is_the_same_through_csi(way: str, registries: Registries, sandbox: Sandbox) -> None:
    """The node plugin publishes it with the secret of the request, and the target shows the same files."""
    registry, certs_dir = prepare(way, registries, sandbox)
    (sandbox.docker / "config.json").unlink(missing_ok=True)
    secrets = {} if way == "plain" else {"username": "reader", "password": PASSWORD}

    with Node(sandbox, "--certs-dir", str(certs_dir)) as node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": registry.reference("models/minilm", "1.0")}, secrets=secrets)
        assert digest_tree(MINILM) == digest_tree(target)
        node.unpublish("csi-1", target)
        assert [] == node.leftovers()


def test_inspect_and_pull_agree_with_the_files(registries: Registries, sandbox: Sandbox) -> None:
    """`inspect` lists each file with its size, and `pull` fills the cache so that a mount needs no further byte."""
    registry, certs_dir = prepare("basic", registries, sandbox)
    cli = CommandLine(sandbox, ("--certs-dir", str(certs_dir)))
    reference = registry.reference("models/minilm", "1.0")

    shown = json.loads(cli.do("inspect", "--json", reference).out)
    sizes = {file["path"]: file["size"] for file in shown["files"]}
    assert {name: (MINILM / name).stat().st_size for name in digest_tree(MINILM)} == sizes

    cli.do("pull", reference)
    with cli.mounted(reference):
        (status,) = cli.status()
        assert status["bytes_total"] == status["bytes_cached"]
