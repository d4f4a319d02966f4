"""A registry that is gone: what is cached reads on, what is missing waits, and new mounts follow the offline policy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support.cli import CommandLine
from tests.support.leaks import Sandbox
from tests.support.models import digest_tree, name_host
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = pytest.mark.kernel

PASSWORD = "canary-7d1e-offline"
WEIGHTS = "weights/model-00002-of-00003.safetensors"


def test_a_reader_waits_for_a_registry_that_is_gone_and_goes_on(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """Stopped in the middle and started again at the same address: cached files read on meanwhile, the sum is right."""
    cached = (small_model / "tokenizer" / "merges.txt").read_bytes()
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        assert cached == (mounted / "tokenizer" / "merges.txt").read_bytes()
        registry.stop()
        with subprocess.Popen(["sha256sum", str(mounted / WEIGHTS)], stdout=subprocess.PIPE) as reader:
            try:
                until(lambda: cli.status()[0]["condition"]["state"] == "degraded", "the mount to say that it waits")
                assert cached == (mounted / "tokenizer" / "merges.txt").read_bytes()
                assert reader.poll() is None
                registry.start()
                out, _ = reader.communicate(timeout=60)
            finally:
                reader.kill()
        assert digest_tree(small_model)[WEIGHTS] in out.decode()
        until(lambda: cli.status()[0]["condition"]["state"] == "healthy", "the mount to be well again")


@pytest.fixture
def certs_of(sandbox: Sandbox) -> Callable[[str], str]:
    """A `--certs-dir` that names a host."""

    def make(host: str) -> str:
        certs_dir = sandbox.directory("certs")
        name_host(certs_dir, host)
        return str(certs_dir)

    return make


@pytest.mark.parametrize("policy", ["allow", "refuse"])
def test_a_known_model_is_mounted_offline_only_where_that_is_allowed(
    sandbox: Sandbox, packed: PackedModel, small_model: Path, policy: str
) -> None:
    """With `offline = "allow"` the second mount needs no registry, by tag and by digest; otherwise it is refused."""
    config = sandbox.root / "weightless.toml"
    config.write_text(f'[registry]\noffline = "{policy}"\n')
    cli = CommandLine(sandbox, ("--config", str(config)))
    with FaultyRegistry() as registry:
        packed.serve(registry, "models/small", "1.0")
        reference = f"{registry.host}/models/small:1.0"
        with cli.mounted(reference):
            cli.wait_cached()
        pinned = json.loads(cli.do("inspect", "--json", reference).out)["reference"]
    if policy == "refuse":
        refused = cli.run("mount", reference, sandbox.directory("refused"))
        assert refused.code == 1, str(refused)
        assert "cannot connect" in refused.error
        return
    for target in (reference, pinned):
        with cli.mounted(target) as mounted:
            assert digest_tree(small_model) == digest_tree(mounted)
    other = cli.run(
        "mount",
        reference,
        sandbox.directory("other"),
        environment={"DOCKER_CONFIG": str(_login(sandbox, registry.host))},
    )
    assert other.code == 1, str(other)


def _login(sandbox: Sandbox, host: str) -> Path:
    """A docker configuration with credentials that the registry was never asked about."""
    directory = sandbox.directory("other-docker")
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"username": "eve", "password": "x"}}}))
    return directory


def test_a_pod_is_published_offline_with_the_credentials_that_were_let_in(
    sandbox: Sandbox, packed: PackedModel, small_model: Path, certs_of: Callable[[str], str]
) -> None:
    """While the registry is gone the same secret opens the volume; another, and none, are refused as if nothing were cached."""
    config = sandbox.root / "weightless.toml"
    config.write_text('[registry]\noffline = "allow"\n')
    good = {"username": "reader", "password": PASSWORD}
    with FaultyRegistry(basic={"reader": PASSWORD}) as registry:
        packed.serve(registry, "models/small", "1.0")
        reference = {"reference": f"{registry.host}/models/small:1.0", "native": "off"}  # one mount for both
        with Node(sandbox, "--certs-dir", certs_of(registry.host), "--config", str(config)) as node:
            node.publish("csi-1", node.target("one"), reference, secrets=good)
            assert digest_tree(small_model) == digest_tree(node.target("one"))
            registry.stop()
            node.publish("csi-2", node.target("two"), reference, secrets=good)
            assert digest_tree(small_model) == digest_tree(node.target("two"))
            (status,) = CommandLine(sandbox).status()
            assert status["condition"]["proven_at"] > 0
            assert "let in by the offline policy" in node.stats("csi-2", node.target("two")).volume_condition.message
            for number, secrets in enumerate(({**good, "password": "guessed"}, {})):
                with pytest.raises(grpc.RpcError) as refused:
                    node.publish(f"csi-bad-{number}", node.target(f"bad-{number}"), reference, secrets=secrets)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            node.unpublish("csi-2", node.target("two"))
            assert CommandLine(sandbox).status()[0]["condition"]["proven_at"] == 0
            node.unpublish("csi-1", node.target("one"))
            assert node.leftovers() == []
    for path in sandbox.cache.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()
