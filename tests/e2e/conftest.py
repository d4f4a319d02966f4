"""What the end-to-end tests share: a sandbox that must be clean afterwards, real registries, a real model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import need_program
from tests.support.cli import CommandLine
from tests.support.dockerregistry import Certificates, DockerRegistry, TokenService
from tests.support.leaks import Sandbox, sandbox
from tests.support.models import MINILM, copy_with_skopeo, name_host, push_with_oras
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import PackedModel, pack_model


@pytest.fixture(name="sandbox")
def _sandbox() -> Iterator[Sandbox]:
    with sandbox() as place:
        yield place


@pytest.fixture
def cli(sandbox: Sandbox) -> CommandLine:
    return CommandLine(sandbox)


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as server:
        yield server


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory of 20 MB, with sizes around the edges of blocks."""
    directory = tmp_path_factory.mktemp("small-model")
    seed = hashlib.shake_128(b"weightless").digest(4 * 1024 * 1024)
    sizes = {
        "config.json": 0,
        "empty.txt": 0,
        "tokenizer/vocab.txt": 1,
        "tokenizer/merges.txt": 1024 * 1024 - 1,
        "weights/model-00001-of-00003.safetensors": 8 * 1024 * 1024,
        "weights/model-00002-of-00003.safetensors": 8 * 1024 * 1024 + 1,
        "weights/model-00003-of-00003.safetensors": 3 * 1024 * 1024 + 4095,
    }
    for number, (name, size) in enumerate(sizes.items()):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        content = (seed[number:] + seed[:number]) * (size // len(seed) + 1)
        path.write_bytes(content[:size])
    (directory / "config.json").write_text(json.dumps({"model_type": "test", "hidden_size": 8}))
    return directory


@pytest.fixture(scope="session")
def packed(small_model: Path) -> PackedModel:
    return pack_model(small_model, name="small")


@pytest.fixture
def reference(registry: FaultyRegistry, packed: PackedModel) -> str:
    """The small model, served by `registry`."""
    packed.serve(registry, "models/small", "1.0")
    return f"{registry.host}/models/small:1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registries:
    """Debian's docker-registry in three ways, each with MiniLM in it as `models/minilm:1.0`."""

    certificates: Certificates
    plain: DockerRegistry
    basic: DockerRegistry
    token: DockerRegistry
    tokens: TokenService


@pytest.fixture(scope="session")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    """MiniLM is pushed to the plain one by oras, and copied to the others by skopeo: neither tool is ours."""
    need_program("docker-registry", "docker-registry")
    need_program("skopeo", "skopeo")
    root = tmp_path_factory.mktemp("registries")
    certificates = Certificates.create(root / "certificates")
    with (
        TokenService(certificates) as tokens,
        DockerRegistry(root / "plain") as plain,
        DockerRegistry(root / "basic", certificates=certificates, htpasswd=True) as basic,
        DockerRegistry(root / "token", certificates=certificates, tokens=tokens) as token,
    ):
        push_with_oras(MINILM, plain, "models/minilm", root)
        for target in (basic, token):
            copy_with_skopeo(plain, target, "models/minilm")
        yield Registries(certificates=certificates, plain=plain, basic=basic, token=token, tokens=tokens)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def named(sandbox: Sandbox, registry: FaultyRegistry) -> str:
    """A `--certs-dir` whose hosts.toml names the test's registry: a node plugin goes to loopback only where it is told to."""
    certs_dir = sandbox.directory("certs")
    name_host(certs_dir, registry.host)
    return str(certs_dir)
