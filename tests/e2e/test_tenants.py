"""A private model on a node, in the cache and mounted by somebody's right: what somebody else may try, and does not get."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.support.leaks import Sandbox
from tests.support.models import digest_tree
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from weightless.demo.pack import PackedModel
from weightless.demo.registry import MANIFEST_TYPE

pytestmark = pytest.mark.kernel

PRIVATE = "alice/secret"
OWN = "eve/own"
ALICE, EVE = {"username": "alice", "password": "a-pw"}, {"username": "eve", "password": "e-pw"}
NOBODY: dict[str, str] = {}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Attempts:
    """Publishes that must fail, each as a pod of its own."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._number = 0

    def code(self, reference: str, secrets: dict[str, str], **attributes: str) -> grpc.StatusCode:
        self._number += 1
        target = self.node.target(f"eve-{self._number}")
        with pytest.raises(grpc.RpcError) as caught:
            self.node.publish(
                f"csi-eve-{self._number}", target, {"reference": reference, **attributes}, secrets=secrets
            )
        assert not target.exists()
        found = caught.value.code()
        assert isinstance(found, grpc.StatusCode)
        return found


@pytest.fixture
def private(registry: FaultyRegistry, packed: PackedModel) -> str:
    """Alice's model, which eve may not pull; she has a repository of her own."""
    registry.basic = {"alice": "a-pw", "eve": "e-pw"}
    registry.closed_to = {"eve": {PRIVATE}, "alice": {OWN}}
    packed.serve(registry, PRIVATE, "1.0", "2.0")
    return f"{registry.host}/{PRIVATE}"


def test_what_is_cached_and_mounted_for_one_pod_is_refused_to_another(
    sandbox: Sandbox, registry: FaultyRegistry, packed: PackedModel, private: str, named: str, small_model: Path
) -> None:
    """By any name, in any way of mounting, by an index of her own, after a restart, and while the registry is away."""
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [{"mediaType": packed.media_type, "digest": str(packed.digest), "size": len(packed.manifest)}],
        }
    ).encode()
    registry.add_manifest(OWN, index, media_type=INDEX_TYPE, tags=["index"])
    with Node(sandbox, "--certs-dir", named) as node:
        for way in ("auto", "off"):
            node.publish(f"csi-{way}", node.target(way), {"reference": f"{private}:1.0", "native": way}, secrets=ALICE)
            assert digest_tree(small_model) == digest_tree(node.target(way))
        names = (f"{private}:1.0", f"{private}:2.0", f"{private}@{packed.digest}", f"{private}:9@{packed.digest}")
        eve = Attempts(node)
        for reference in names:
            for native in ("auto", "off"):
                assert eve.code(reference, EVE, native=native) is grpc.StatusCode.PERMISSION_DENIED
        assert eve.code(names[0], NOBODY) is grpc.StatusCode.UNAUTHENTICATED
        assert eve.code(names[0], {**EVE, "password": "a-pw"}) is grpc.StatusCode.UNAUTHENTICATED
        views = {"exclude-model-weights": "true"}, {"verify": "strict"}, {"prefetch": "full"}
        assert {eve.code(names[0], EVE, **view) for view in views} == {grpc.StatusCode.PERMISSION_DENIED}
        for reference in (f"{registry.host}/{OWN}:index", f"{registry.host}/{OWN}@{packed.digest}"):
            assert eve.code(reference, EVE) is grpc.StatusCode.NOT_FOUND
        crooked = json.loads(packed.manifest)
        crooked["layers"][-1]["urls"] = ["https://elsewhere.test/x"]
        registry.add_manifest(OWN, json.dumps(crooked).encode(), media_type=MANIFEST_TYPE, tags=["urls"])
        assert eve.code(f"{registry.host}/{OWN}:urls", EVE) is grpc.StatusCode.FAILED_PRECONDITION

        node.stop()
        node.start()
        assert eve.code(names[0], EVE) is grpc.StatusCode.PERMISSION_DENIED
        assert eve.code(names[2], NOBODY) is grpc.StatusCode.UNAUTHENTICATED
        registry.stop()
        for secrets in (EVE, NOBODY, ALICE):
            assert eve.code(names[2], secrets) is grpc.StatusCode.UNAVAILABLE
        assert digest_tree(small_model) == digest_tree(node.target("off"))
        for way in ("auto", "off"):
            node.unpublish(f"csi-{way}", node.target(way))
    assert [] == node.leftovers()


def test_a_registry_of_ones_own_shows_nothing_of_what_others_fetched(
    sandbox: Sandbox, registry: FaultyRegistry, packed: PackedModel, private: str, named: str
) -> None:
    """Its manifest names the layers that lie in the cache; it cannot give a byte of them, and so the cache does not."""
    with FaultyRegistry() as own, Node(sandbox, "--certs-dir", named) as node:
        (Path(named) / own.host).mkdir()
        (Path(named) / own.host / "hosts.toml").write_text(f'server = "{own.url}"\n')
        node.publish("csi-a", node.target("a"), {"reference": f"{private}:1.0"}, secrets=ALICE)
        digest_tree(node.target("a"))
        own.add_manifest("x", packed.manifest, media_type=packed.media_type, tags=["1"])
        config = json.loads(packed.manifest)["config"]["digest"]
        own.add_blob(next(source for digest, source in packed.blobs.items() if str(digest) == config))
        target = node.target("e")
        node.publish("csi-e", target, {"reference": f"{own.host}/x:1", "prefetch": "none"})
        for path in ("tokenizer/merges.txt", "weights/model-00001-of-00003.safetensors"):
            with pytest.raises(OSError, match=r"Input/output|No data|Permission|not permitted"):
                (target / path).read_bytes()
        node.unpublish("csi-e", target)
        node.unpublish("csi-a", node.target("a"))
    assert [] == node.leftovers()


def test_an_open_mirror_is_no_way_in(
    sandbox: Sandbox, registry: FaultyRegistry, packed: PackedModel, private: str, small_model: Path
) -> None:
    """A peer has the model and gives it to anybody: eve is refused as the registry refuses her; alice gets her bytes from it."""
    certs_dir = sandbox.directory("certs")
    with FaultyRegistry() as mirror:
        packed.serve(mirror, PRIVATE, "1.0")
        (certs_dir / registry.host).mkdir()
        (certs_dir / registry.host / "hosts.toml").write_text(f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
        with Node(sandbox, "--certs-dir", str(certs_dir)) as node:
            eve = Attempts(node)
            for _ in range(2):
                assert eve.code(f"{private}:1.0", EVE) is grpc.StatusCode.PERMISSION_DENIED
                assert eve.code(f"{private}@{packed.digest}", NOBODY) is grpc.StatusCode.UNAUTHENTICATED
                node.publish("csi-a", node.target("a"), {"reference": f"{private}:1.0"}, secrets=ALICE)
                assert digest_tree(small_model) == digest_tree(node.target("a"))
            assert not registry.requests("blob")
            assert {""} == {entry.authorization for entry in mirror.requests()}
            node.unpublish("csi-a", node.target("a"))
    assert [] == node.leftovers()
