"""Private models on a node: each pod by its own credentials, whatever the cache holds, for as long as it reads."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.support.cli import CommandLine
from tests.support.dockerregistry import docker_config
from tests.support.leaks import Sandbox
from tests.support.models import digest_tree
from tests.support.node import Node
from tests.support.provider import Programs, pod_of
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until

pytestmark = pytest.mark.kernel

FIRST = "weights/model-00001-of-00003.safetensors"
SECOND = "weights/model-00002-of-00003.safetensors"


def configured(sandbox: Sandbox, named: str, **credentials: object) -> Node:
    """A node plugin with this `[credentials]`; keys with _ for -."""
    file = sandbox.root / "weightless.toml"
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in credentials.items()]
    file.write_text("\n".join(("[credentials]", *lines, "")))
    return Node(sandbox, "--certs-dir", named, "--config", str(file))


def refusal(node: Node, name: str, attributes: dict[str, str], **more: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        node.publish(f"csi-{name}", node.target(name), attributes, **more)
    return caught.value.code(), caught.value.details()


def test_a_pod_gets_what_its_own_account_may_pull_cached_or_not(
    sandbox: Sandbox, cli: CommandLine, registry: FaultyRegistry, reference: str, named: str, small_model: Path
) -> None:
    """All bytes are on the node, by somebody's right, and mounted by FUSE and natively: another pod is refused both until the
    registry says yes to its own."""
    programs = Programs(sandbox.directory("providers"))
    programs.install("exchange", match=registry.host, audience="registry")
    registry.basic = {"alice": "a-pw", "bob": "b-pw"}
    registry.closed_to = {"bob": {"models/small"}}
    docker_config(sandbox.docker, registry.host, user="alice", password="a-pw")
    cli.do("pull", reference)
    alice, bob = pod_of("alice", "alice", "a-pw"), pod_of("bob", "bob", "b-pw")
    ways = [{"reference": reference, "native": native} for native in ("auto", "off")]
    with configured(
        sandbox,
        named,
        allow=["pod-identity", "publish-secret", "anonymous"],
        provider_config=str(programs.config),
        provider_bin_dir=str(programs.bin),
    ) as node:
        for number, way in enumerate(ways):
            node.publish(f"csi-a{number}", node.target(f"a{number}"), way | alice)
            assert digest_tree(small_model) == digest_tree(node.target(f"a{number}"))
        assert ["fuse", "native"] == sorted(mount["served_by"] for mount in cli.status())

        for way in ways:
            code, words = refusal(node, "b", way | bob)
            assert grpc.StatusCode.PERMISSION_DENIED is code
            assert "provider exchange gave these for ServiceAccount default/bob: let that account pull this" in words
            code, words = refusal(node, "c", way)
            assert grpc.StatusCode.UNAUTHENTICATED is code
            assert f"no credentials for {registry.host}: name a secret for it" in words
            assert "needs a pod's ServiceAccount" in words
            code, words = refusal(node, "d", way, secrets={"username": "bob", "password": "no"})
            assert grpc.StatusCode.UNAUTHENTICATED is code
            assert "the volume's secret (nodePublishSecretRef): correct it" in words
        assert not any(node.target(name).exists() for name in "bcd")

        registry.closed_to = {}
        for number, way in enumerate(ways):
            node.publish(f"csi-b{number}", node.target(f"b{number}"), way | bob)
            assert digest_tree(small_model) == digest_tree(node.target(f"b{number}"))
        assert 2 == len(cli.status())
        for name in ("a0", "a1", "b0", "b1"):
            node.unpublish(f"csi-{name}", node.target(name))
        assert "fork" not in node.last_words()  # gRPC's words about it are no log line
    assert [] == node.leftovers()


def test_a_driver_secret_that_is_rotated_serves_the_pods_that_run(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, named: str, small_model: Path
) -> None:
    """kubelet swaps the mounted secret under a volume that is read lazily: what is read afterwards comes by the new password."""
    mounted = sandbox.directory("secret")
    for version in ("old", "new"):
        docker_config(sandbox.directory(version), registry.host, user="driver", password=f"{version}-pw")
    (mounted / "..data").symlink_to(sandbox.root / "old")
    (mounted / "config.json").symlink_to("..data/config.json")
    registry.basic = {"driver": "old-pw"}
    with configured(sandbox, named, docker_config=str(mounted)) as node:
        target = node.target("a")
        node.publish("csi-a", target, {"reference": reference, "prefetch": "none"})
        assert (small_model / FIRST).read_bytes() == (target / FIRST).read_bytes()

        registry.basic = {"driver": "new-pw"}
        (mounted / "..new").symlink_to(sandbox.root / "new")
        (mounted / "..new").rename(mounted / "..data")
        until(lambda: "credentials_renewed" in node.last_words(), "the new password is in force")
        assert (small_model / SECOND).read_bytes() == (target / SECOND).read_bytes()
        node.unpublish("csi-a", target)
    assert [] == node.leftovers()


def test_the_nodes_own_credentials_can_be_forbidden(
    sandbox: Sandbox, registry: FaultyRegistry, reference: str, named: str
) -> None:
    """Docker's configuration of the node counts for every pod; where that is not allowed, a pod brings its own or is refused."""
    registry.basic = {"driver": "pw"}
    docker_config(sandbox.docker, registry.host, user="driver", password="pw")
    with configured(sandbox, named, allow=["publish-secret"]) as node:
        code, words = refusal(node, "b", {"reference": reference})
        assert grpc.StatusCode.UNAUTHENTICATED is code
        assert "nothing is pulled without credentials on this node" in words
        secret = {"username": "driver", "password": "pw"}
        node.publish("csi-c", node.target("c"), {"reference": reference}, secrets=secret)
        node.unpublish("csi-c", node.target("c"))
    assert [] == node.leftovers()
