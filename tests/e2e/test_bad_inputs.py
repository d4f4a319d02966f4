"""Bad inputs, through the command line and through CSI: each has a clear error and leaves nothing behind."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.pb import csi_pb2
from tests.e2e.badartifacts import BAD_ARTIFACTS, Case
from tests.support.cli import CommandLine, Result
from tests.support.leaks import Sandbox, sandbox
from tests.support.models import digest_tree, name_host
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = pytest.mark.kernel

by_name = pytest.mark.parametrize("case", BAD_ARTIFACTS, ids=[case.name for case in BAD_ARTIFACTS])


def assert_refused(result: Result, *says: str, code: int = 1) -> None:
    """`error: where: what` on stderr with all the words, and a way out at most; no traceback, nothing on stdout."""
    assert code == result.code, str(result)
    assert "" == result.out, str(result)
    assert "Traceback" not in result.error, str(result)
    if code == 1:
        first, *rest = result.error.splitlines()
        assert first.startswith("error: "), str(result)
        assert [] == rest or (len(rest) == 1 and rest[0].startswith("  fix: ")), str(result)
    # Terminals wrap usage errors into boxes: compare words without them.
    flat = re.sub(r"[\s│╭╮╰╯─]+", " ", result.error).lower()
    assert [] == [word for word in says if word.lower() not in flat], str(result)


# ---- through the command line ----


@by_name
def test_the_command_line_refuses(case: Case, cli: CommandLine, registry: FaultyRegistry, packed: PackedModel) -> None:
    """`mount` fails with exit code 1 and says what, where; the mount point is as it was, and no process stays."""
    directory = cli.sandbox.directory("mnt")
    reference = case.prepare(registry, packed)
    assert_refused(cli.run("mount", reference, directory), *case.says)
    assert [] == cli.sandbox.mounts()
    assert [] == list(directory.iterdir())
    until(lambda: not cli.sandbox.processes(), "no process stays", within_s=5)


def test_a_mount_point_that_is_a_file(cli: CommandLine, reference: str) -> None:
    """The message names the file."""
    file = cli.sandbox.root / "file"
    file.write_text("mine")
    assert_refused(cli.run("mount", reference, file), str(file), "director")
    assert "mine" == file.read_text()


def test_a_mount_point_that_is_missing(cli: CommandLine, reference: str) -> None:
    """It is named, and not made."""
    missing = cli.sandbox.root / "missing"
    assert_refused(cli.run("mount", reference, missing), str(missing))
    assert not missing.exists()


def test_a_mount_point_that_is_mounted_already(cli: CommandLine, reference: str, small_model: Path) -> None:
    """The second mount is refused and the first is untouched."""
    with cli.mounted(reference) as mounted:
        assert_refused(cli.run("mount", reference, mounted), str(mounted), "mounted")
        assert digest_tree(small_model) == digest_tree(mounted)


def test_unmounting_what_is_not_mounted(cli: CommandLine) -> None:
    directory = cli.sandbox.directory("plain")
    assert_refused(cli.run("unmount", directory), str(directory), "not")


def test_unmounting_a_pods_volume_is_refused(cli: CommandLine, registry: FaultyRegistry, packed: PackedModel) -> None:
    """Neither the plugin's mount nor a pod's bind of it: the pod would lose its model."""
    packed.serve(registry, "models/small", "v1")
    certs = cli.sandbox.directory("certs.d")
    name_host(certs, registry.host)
    with Node(cli.sandbox, "--certs-dir", str(certs)) as node:
        target = node.target("pod")
        node.publish("volume", target, {"reference": f"{registry.host}/models/small:v1"})
        (status,) = json.loads(cli.do("status", "--json").out)
        for place in (target, status["mountpoint"]):
            assert_refused(cli.run("unmount", place), str(place), "belongs to the node plugin", "delete the pods")
        assert (target / "config.json").exists()
        node.unpublish("volume", target)
        assert [] == node.leftovers()


def test_unmounting_what_is_busy_changes_nothing(cli: CommandLine, reference: str, small_model: Path) -> None:
    """The error says who uses it and what to do, and the mount goes on."""
    with cli.mounted(reference) as mounted:
        with (mounted / "config.json").open("rb") as held:
            assert_refused(cli.run("unmount", mounted), str(mounted), "in use", "--lazy")
            assert (small_model / "config.json").read_bytes() == held.read()
        assert digest_tree(small_model) == digest_tree(mounted)


def test_all_files_excluded(cli: CommandLine, reference: str) -> None:
    """An empty volume would be a mistake nobody sees."""
    directory = cli.sandbox.directory("mnt")
    assert_refused(cli.run("mount", "--exclude", "*", reference, directory), "exclude")


def test_wrong_usage_is_exit_code_2(cli: CommandLine, reference: str) -> None:
    assert_refused(cli.run("mount", "--prefetch", "some", reference, "mnt"), "some", code=2)
    assert_refused(cli.run("mount", reference), "DIR", code=2)
    assert_refused(cli.run("fly"), "fly", code=2)


def test_an_unknown_key_in_the_configuration(cli: CommandLine, reference: str) -> None:
    """The key and the file are named."""
    config = cli.sandbox.root / "weightless.toml"
    config.write_text('cache-dri = "/tmp"\n')
    assert_refused(cli.run("--config", config, "inspect", reference), str(config), "cache-dri")


def test_bad_hosts_toml(cli: CommandLine, registry: FaultyRegistry, reference: str) -> None:
    """A file that is no TOML is named."""
    certs = cli.sandbox.directory("certs")
    place = certs / registry.host
    place.mkdir()
    (place / "hosts.toml").write_text("server = [")
    assert_refused(cli.run("--certs-dir", certs, "inspect", reference), str(place / "hosts.toml"))


@pytest.mark.parametrize("fault", ["wrong-range", "cut@1000", "500", "429"])
def test_a_registry_that_misbehaves_for_blobs_only_delays(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path, fault: str
) -> None:
    """Three bad answers in a row, then good ones: the reader sees right bytes and no error."""
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        registry.script("blob", f"{fault} {fault} {fault}")
        assert digest_tree(small_model) == digest_tree(mounted)


def test_a_layer_that_is_shorter_than_the_manifest_says(
    cli: CommandLine, registry: FaultyRegistry, packed: PackedModel
) -> None:
    """The lie is found when the file is read: EIO, and no zeros."""
    import json

    packed.serve(registry, "models/small", "good")
    manifest = json.loads(packed.manifest)
    layer = next(layer for layer in manifest["layers"] if "merges" in str(layer))
    layer["size"] += 4096
    registry.add_manifest("models/small", json.dumps(manifest).encode(), tags=["lying"])
    reference = f"{registry.host}/models/small:lying"
    with (
        cli.mounted(reference, "--prefetch", "none") as mounted,
        pytest.raises(OSError, match="Input/output error"),
    ):
        (mounted / "tokenizer" / "merges.txt").read_bytes()


# ---- through CSI ----


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One plugin for the table: none of the refusals may leave anything in it."""
    with sandbox() as place, Node(place, "--certs-dir", str(place.directory("certs"))) as plugin:
        yield plugin


@pytest.fixture(autouse=True)
def _nothing_stays_published(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "node" in request.fixturenames:
        assert [] == request.getfixturevalue("node").leftovers()


def refusal(node: Node, *arguments: Any, **changes: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        node.publish(*arguments, **changes)
    return caught.value


@by_name
def test_csi_refuses(case: Case, node: Node, registry: FaultyRegistry, packed: PackedModel) -> None:
    """NodePublishVolume fails with the right code; no target, mount, record or process stays."""
    name_host(node.sandbox.root / "certs", registry.host)
    reference = case.prepare(registry, packed)
    before = node.sandbox.processes()
    error = refusal(node, "csi-bad", node.target("bad"), {"reference": reference})
    assert case.code == error.code(), error.details()
    assert [] == [word for word in case.says if word.lower() not in error.details().lower()], error.details()
    assert [] == node.leftovers()
    workers = {pid for pid, command in node.sandbox.processes().items() if "fuse.worker" in command}
    assert not workers - set(before)


def test_an_address_that_nobody_named_is_not_connected_to(
    node: Node, registry: FaultyRegistry, packed: PackedModel
) -> None:
    """The author of a pod cannot make the node talk to its own loopback addresses."""
    packed.serve(registry, "models/small", "1.0")
    error = refusal(node, "csi-bad", node.target("bad"), {"reference": f"{registry.host}/models/small:1.0"})
    assert grpc.StatusCode.PERMISSION_DENIED == error.code(), error.details()
    assert "hosts.toml" in error.details()
    assert [] == registry.requests()


BAD_REQUESTS: dict[str, dict[str, Any]] = {
    "no volume id": {"volume_id": ""},
    "no target": {"target_path": ""},
    "a target outside kubelet's directory": {"target_path": "/tmp/elsewhere"},
    "a target that climbs out": {
        "target_path": "{kubelet}/pods/x/volumes/kubernetes.io~csi/../../../../../elsewhere/mount"
    },
    "a relative target": {"target_path": "pods/x/volumes/kubernetes.io~csi/v/mount"},
    "no capability": {"volume_capability": None},
    "a block volume": {
        "volume_capability": csi_pb2.VolumeCapability(
            block=csi_pb2.VolumeCapability.BlockVolume(),
            access_mode=csi_pb2.VolumeCapability.AccessMode(
                mode=csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY
            ),
        )
    },
    "no reference": {"volume_context": {}},
    "an unknown attribute": {"volume_context": {"reference": "{reference}", "refrence": "x"}},
    "an unknown prefetch": {"volume_context": {"reference": "{reference}", "prefetch": "some"}},
    "patterns that are no JSON": {"volume_context": {"reference": "{reference}", "exclude-file-patterns": "*.bin"}},
    "an unknown secret": {"secrets": {"token": "x"}},
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_is_wrong_is_invalid_argument(
    name: str, node: Node, registry: FaultyRegistry, packed: PackedModel
) -> None:
    """Before anything is done, and with what is wrong in the message."""
    name_host(node.sandbox.root / "certs", registry.host)
    packed.serve(registry, "models/small", "1.0")
    reference = f"{registry.host}/models/small:1.0"

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{reference}", reference).replace("{kubelet}", str(node.kubelet))
        return {key: filled(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    changes = {key: filled(value) for key, value in BAD_REQUESTS[name].items()}
    error = refusal(node, "csi-bad", node.target("bad"), {"reference": reference}, **changes)
    assert grpc.StatusCode.INVALID_ARGUMENT == error.code(), error.details()
    assert error.details()
    assert [] == registry.requests()


def test_a_target_behind_a_symbolic_link(node: Node, registry: FaultyRegistry, packed: PackedModel) -> None:
    """What a pod could have put there is not followed."""
    name_host(node.sandbox.root / "certs", registry.host)
    packed.serve(registry, "models/small", "1.0")
    elsewhere = node.sandbox.directory("elsewhere")
    target = node.target("linked")
    target.parent.rmdir()
    target.parent.symlink_to(elsewhere)
    error = refusal(node, "csi-bad", target, {"reference": f"{registry.host}/models/small:1.0"})
    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL), error.details()
    assert [] == list(elsewhere.iterdir())


def test_a_volume_id_that_looks_like_a_path_is_only_a_name(
    node: Node, registry: FaultyRegistry, packed: PackedModel
) -> None:
    """Ids are opaque (CSI): whatever they look like, nothing is written elsewhere for them."""
    name_host(node.sandbox.root / "certs", registry.host)
    packed.serve(registry, "models/small", "1.0")
    before = sorted(node.sandbox.root.glob("*"))
    target = node.target("odd")
    node.publish("../../odd", target, {"reference": f"{registry.host}/models/small:1.0"})
    assert before == sorted(node.sandbox.root.glob("*"))
    node.unpublish("../../odd", target)


def test_the_same_target_with_other_parameters_already_exists(
    node: Node, registry: FaultyRegistry, packed: PackedModel, small_model: Path
) -> None:
    """And the volume that is there stays."""
    name_host(node.sandbox.root / "certs", registry.host)
    packed.serve(registry, "models/small", "1.0")
    attributes = {"reference": f"{registry.host}/models/small:1.0"}
    target = node.target("pod")
    node.publish("csi-1", target, attributes)
    error = refusal(node, "csi-1", target, {**attributes, "exclude-model-weights": "true"})
    assert grpc.StatusCode.ALREADY_EXISTS == error.code(), error.details()
    assert digest_tree(small_model) == digest_tree(target)
    node.unpublish("csi-1", target)


def test_unpublishing_and_asking_for_what_is_not_there(node: Node) -> None:
    """Unpublish is OK for an unknown volume; its statistics are NOT_FOUND."""
    target = node.target("nobody")
    node.unpublish("csi-unknown", target)
    with pytest.raises(grpc.RpcError) as caught:
        node.stats("csi-unknown", target)
    assert grpc.StatusCode.NOT_FOUND == caught.value.code()


def test_a_second_plugin_on_the_same_socket_ends(node: Node) -> None:
    """It says why, and the first goes on."""
    second = subprocess.run(
        node.argv(), env=node.sandbox.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode not in (0, 2), second.stderr
    assert str(node.socket) in second.stderr + second.stdout
    assert node.identity.Probe(csi_pb2.ProbeRequest(), timeout=2).ready.value


def test_a_dead_socket_file_is_replaced(sandbox: Sandbox) -> None:
    """What `kill -9` leaves behind does not keep the next plugin from starting."""
    node = Node(sandbox)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.socket))
    with node:
        assert node.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=2).name == "csi.weightless.dev"
    assert not node.socket.exists()
