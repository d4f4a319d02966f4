"""Bad inputs, through the command line and through CSI: each has a clear error and leaves nothing behind."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi.pb import csi_pb2
from tests.e2e.badartifacts import BAD_ARTIFACTS, Case
from tests.support.cli import CommandLine, Result
from tests.support.leaks import Sandbox, sandbox, serves_mount
from tests.support.models import digest_tree, name_host
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel

pytestmark = pytest.mark.kernel

by_name = pytest.mark.parametrize("case", BAD_ARTIFACTS, ids=[case.name for case in BAD_ARTIFACTS])


def assert_refused(result: Result, *says: str, fix: str = "", code: int = 1) -> None:
    """`error: where: what` on stderr with all the words, and what to do; no traceback, nothing on stdout."""
    assert code == result.code, str(result)
    assert "" == result.out, str(result)
    assert "Traceback" not in result.error, str(result)
    if code == 1:
        first, second = result.error.splitlines()
        assert re.fullmatch(r"error: .+: .+", first), str(result)
        assert re.fullmatch(r"  fix: .+", second), str(result)
        assert fix in second, str(result)
    # Terminals wrap usage errors into boxes: compare words without them.
    flat = re.sub(r"[\s│╭╮╰╯─]+", " ", result.error).lower()
    assert [] == [word for word in says if word.lower() not in flat], str(result)


# ---- through the command line ----


@by_name
def test_the_command_line_refuses(case: Case, cli: CommandLine, registry: FaultyRegistry, packed: PackedModel) -> None:
    """`mount` fails with exit code 1 and says what, where; the mount point is as it was, and no process stays."""
    directory = cli.sandbox.directory("mnt")
    reference = case.prepare(registry, packed)
    assert_refused(cli.run("mount", reference, directory), *case.says, fix=case.fix)
    assert [] == cli.sandbox.mounts()
    assert [] == list(directory.iterdir())
    until(lambda: not cli.sandbox.processes(), "no process stays", within_s=5)


def test_a_mount_point_that_is_a_file(cli: CommandLine, reference: str) -> None:
    """The message names the file."""
    file = cli.sandbox.root / "file"
    file.write_text("mine")
    assert_refused(cli.run("mount", reference, file), str(file), "director", fix="name a directory")
    assert "mine" == file.read_text()


def test_a_mount_point_that_is_missing(cli: CommandLine, reference: str) -> None:
    """It is named, and not made."""
    missing = cli.sandbox.root / "missing"
    assert_refused(cli.run("mount", reference, missing), str(missing), fix="create it first")
    assert not missing.exists()


def test_a_mount_point_that_is_empty(cli: CommandLine, reference: str) -> None:
    """A variable that is not set is not the current directory."""
    assert_refused(cli.run("mount", reference, ""), "DIR", "empty", fix="left unset")
    assert_refused(cli.run("unmount", ""), "DIR", "empty", fix="left unset")


def test_a_mount_point_inside_of_a_mount(cli: CommandLine, reference: str) -> None:
    """The mount that it lies in is named."""
    with cli.mounted(reference) as mounted:
        inside = mounted / "weights"
        assert_refused(cli.run("mount", reference, inside), str(inside), "inside of", fix="outside of it")


def test_a_mount_point_that_is_mounted_already(cli: CommandLine, reference: str, small_model: Path) -> None:
    """The second mount is refused and the first is untouched."""
    with cli.mounted(reference) as mounted:
        assert_refused(cli.run("mount", reference, mounted), str(mounted), "mounted", fix="unmount it first")
        assert digest_tree(small_model) == digest_tree(mounted)


def test_unmounting_what_is_not_mounted(cli: CommandLine) -> None:
    directory = cli.sandbox.directory("plain")
    assert_refused(cli.run("unmount", directory), str(directory), "not", fix="weightless status")


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
    assert_refused(cli.run("mount", "--exclude", "*", reference, directory), "exclude", fix="exclude fewer files")


def test_wrong_usage_is_exit_code_2(cli: CommandLine, reference: str) -> None:
    assert_refused(cli.run("mount", "--prefetch", "some", reference, "mnt"), "some", code=2)
    assert_refused(cli.run("mount", reference), "DIR", code=2)
    assert_refused(cli.run("fly"), "fly", code=2)


def test_an_unknown_key_in_the_configuration(cli: CommandLine, reference: str) -> None:
    """The key and the file are named."""
    config = cli.sandbox.root / "weightless.toml"
    config.write_text('cache-dri = "/tmp"\n')
    assert_refused(
        cli.run("--config", config, "inspect", reference), str(config), "cache-dri", fix="known keys: cache-dir"
    )


def test_bad_hosts_toml(cli: CommandLine, registry: FaultyRegistry, reference: str) -> None:
    """A file that is no TOML is named."""
    certs = cli.sandbox.directory("certs")
    place = certs / registry.host
    place.mkdir()
    (place / "hosts.toml").write_text("server = [")
    assert_refused(cli.run("--certs-dir", certs, "inspect", reference), str(place / "hosts.toml"), "toml")


def test_a_directory_of_hosts_toml_that_does_not_exist(cli: CommandLine, reference: str) -> None:
    """It was named, so it was to count: a silent default would be another registry, or no TLS authority."""
    missing = cli.sandbox.root / "nowhere"
    config = cli.sandbox.root / "weightless.toml"
    config.write_text(f'certs-dir = "{missing}"\n')
    directory = cli.sandbox.directory("mnt")
    for options in (("--certs-dir", str(missing)), ("--config", str(config))):
        for command in (("inspect", reference), ("pull", reference), ("mount", reference, str(directory))):
            assert_refused(cli.run(*options, *command), str(missing), "does not exist", fix="--certs-dir")
    assert [] == list(directory.iterdir())


@pytest.mark.parametrize(
    ("line", "says", "fix"),
    [
        ('quota = "lots"', "not a size", "500GB"),
        ("quota = -5", "not a size", "500GB"),
        ("quota = 1.5", "quota", "500GB"),
        ("free-space = 2", "free-space", "0 to below 1"),
    ],
)
def test_a_bad_limit_in_the_configuration(cli: CommandLine, reference: str, line: str, says: str, fix: str) -> None:
    """The key is named, and what it may be: a limit that is ignored fills a disk."""
    config = cli.sandbox.root / "weightless.toml"
    config.write_text(f"[cache]\n{line}\n")
    assert_refused(cli.run("--config", config, "inspect", reference), str(config), says, fix=fix)


def test_a_broken_docker_configuration(cli: CommandLine, reference: str) -> None:
    """The file is named, and the command that writes it anew."""
    (cli.sandbox.docker / "config.json").write_text('{"auths":')
    says = (str(cli.sandbox.docker / "config.json"), "docker config")
    assert_refused(cli.run("mount", reference, cli.sandbox.directory("mnt")), *says, fix="docker login")


def test_a_cache_directory_that_is_a_file(cli: CommandLine, reference: str) -> None:
    """It is named, and stays what it is."""
    cli.sandbox.cache.write_text("mine")
    assert_refused(cli.run("mount", reference, cli.sandbox.directory("mnt")), str(cli.sandbox.cache), fix="--cache-dir")
    assert "mine" == cli.sandbox.cache.read_text()
    cli.sandbox.cache.unlink()


@contextmanager
def full_disk(place: Path) -> Iterator[None]:
    """A file system at `place` without room for a single byte."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=755", "tmpfs", place], check=True)
    try:
        (place / "lost+found").write_bytes(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def test_a_full_disk(cli: CommandLine, reference: str) -> None:
    """A fetcher that cannot start for it says so to whoever started it: the disk is named, and no line of a log is shown."""
    directory = cli.sandbox.directory("mnt")
    with full_disk(cli.sandbox.cache):
        for command in (("inspect", reference), ("pull", reference), ("mount", reference, str(directory))):
            result = cli.run(*command)
            assert_refused(result, str(cli.sandbox.cache), "is full", fix="free space there")
            assert "{" not in result.error
        until(lambda: not cli.sandbox.processes(), "no process stays", within_s=5)
        assert ["lost+found"] == [path.name for path in cli.sandbox.cache.iterdir() if path.stat().st_size]
    assert [] == list(directory.iterdir())
    assert [] == [path.name for path in cli.sandbox.run.iterdir() if not path.name.endswith(".lock")]


def test_two_mounts_of_one_directory_at_once(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """The later one is told so in words of its user, and the earlier one succeeds."""
    registry.script("manifest", "hang")
    directory = cli.sandbox.directory("mnt")
    first = subprocess.Popen(
        cli.argv("mount", reference, directory),
        env=cli.sandbox.environment,
        cwd=cli.sandbox.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with first:
        # The holder has the directory to itself before it starts the fetcher.
        until((cli.sandbox.cache / "fetcher.sock").exists, "the first mount asks the registry", within_s=20)
        result = cli.run("mount", reference, directory)
        assert_refused(result, str(directory), "mounting on this directory", fix="unmount it first")
        assert "holder" not in result.error
        registry.release()
        said, _ = first.communicate(timeout=60)
    assert 0 == first.returncode, said
    assert digest_tree(small_model) == digest_tree(directory)
    cli.do("unmount", directory)


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
    """The error of a publish that must fail: `where: what (fix)`, on one line."""
    with pytest.raises(grpc.RpcError) as caught:
        node.publish(*arguments, **changes)
    assert re.fullmatch(r".+: .+ \(.+\)", caught.value.details()), caught.value.details()
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
    assert (case.in_pods or case.fix) in error.details()
    assert [] == node.leftovers()
    workers = {pid for pid, command in node.sandbox.processes().items() if "fuse.worker" in command}
    assert not [pid for pid in workers - set(before) if serves_mount(pid)]


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
    "an empty reference": {"volume_context": {"reference": ""}},
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
    assert [] == registry.requests()


def test_a_target_that_is_a_file(node: Node, registry: FaultyRegistry, packed: PackedModel) -> None:
    """It is named, and stays what it is."""
    name_host(node.sandbox.root / "certs", registry.host)
    packed.serve(registry, "models/small", "1.0")
    target = node.target("filed")
    target.write_text("mine")
    error = refusal(node, "csi-bad", target, {"reference": f"{registry.host}/models/small:1.0"})
    assert grpc.StatusCode.INVALID_ARGUMENT == error.code(), error.details()
    assert str(target) in error.details()
    assert "mine" == target.read_text()
    target.unlink()


def test_a_full_disk_under_the_plugin(sandbox: Sandbox, registry: FaultyRegistry, packed: PackedModel) -> None:
    """RESOURCE_EXHAUSTED, which kubelet repeats; with room again the same publish succeeds."""
    certs = sandbox.directory("certs.d")
    name_host(certs, registry.host)
    packed.serve(registry, "models/small", "1.0")
    attributes = {"reference": f"{registry.host}/models/small:1.0"}
    node = Node(sandbox, "--certs-dir", str(certs))
    target = node.target("pod")
    try:
        with full_disk(sandbox.cache):
            node.start()
            error = refusal(node, "csi-full", target, attributes)
            assert grpc.StatusCode.RESOURCE_EXHAUSTED == error.code(), error.details()
            assert f"{sandbox.cache}: the disk of the cache directory is full (free space" in error.details()
            assert [] == [left for left in node.leftovers() if not left.endswith(str(sandbox.cache))]
        node.publish("csi-full", target, attributes)
        node.unpublish("csi-full", target)
        assert [] == node.leftovers()
    finally:
        node.stop()


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
    argv = ["info" if word == "debug" else word for word in node.argv()]  # debug shows tracebacks
    second = subprocess.run(argv, env=node.sandbox.environment, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode not in (0, 2), second.stderr
    assert re.search(
        rf"error: {node.socket}: another node plugin serves this socket\n  fix: stop it first", second.stderr
    )
    assert node.identity.Probe(csi_pb2.ProbeRequest(), timeout=2).ready.value


@pytest.mark.parametrize(
    ("option", "value", "says", "fix"),
    [
        ("--endpoint", "unix://{file}/csi.sock", "{file}: the directory of the socket cannot be used", "--endpoint"),
        ("--endpoint", "tcp://127.0.0.1:1", "'tcp://127.0.0.1:1' is not the absolute path", "unix:///path/csi.sock"),
        ("--state-dir", "{file}", "{file}: the plugin's directory cannot be used", "--state-dir"),
        ("--certs-dir", "{file}", "{file}: the directory of hosts.toml files does not exist", "--certs-dir"),
        ("--node-id", "", "--node-id is missing", "the node's name in kubernetes"),
    ],
)
def test_a_plugin_that_cannot_start(sandbox: Sandbox, option: str, value: str, says: str, fix: str) -> None:
    """It names what it was given, and ends."""
    node = Node(sandbox)
    file = sandbox.root / "file"
    file.write_text("mine")
    argv = ["info" if word == "debug" else word for word in node.argv()] + [option, value.format(file=file)]
    done = subprocess.run(
        argv, env=sandbox.environment, capture_output=True, text=True, timeout=60, check=False, cwd=sandbox.root
    )
    assert 1 == done.returncode, done.stderr
    message = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert says.format(file=file) in message
    assert fix in done.stderr.splitlines()[-1].lower()
    assert "mine" == file.read_text()


def test_a_dead_socket_file_is_replaced(sandbox: Sandbox) -> None:
    """What `kill -9` leaves behind does not keep the next plugin from starting."""
    node = Node(sandbox)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.socket))
    with node:
        assert node.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=2).name == "csi.weightless.dev"
    assert not node.socket.exists()
