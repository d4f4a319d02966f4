"""Models that are whole in the cache when they are mounted: the kernel shows them alone, and no process of ours is needed."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conftest import need
from tests.support.cli import CommandLine
from tests.support.leaks import Sandbox
from tests.support.models import digest_tree
from tests.support.node import Node
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel, pack_model

pytestmark = pytest.mark.kernel

LARGE = "weights/model-00001-of-00003.safetensors"


@pytest.fixture(autouse=True)
def _root_and_kernel() -> None:
    need(os.geteuid() == 0, "native mounts are root's")
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    need(release >= (6, 6), "data-only layers need kernel 6.5, and user attributes of a tmpfs 6.6")


@pytest.fixture
def whole(cli: CommandLine, reference: str) -> str:
    """The reference of a model that is in the cache already."""
    cli.do("pull", reference)
    return reference


@contextmanager
def node_with(sandbox: Sandbox, named: str, *options: str) -> Iterator[Node]:
    node = Node(sandbox, "--certs-dir", named)
    node.more = options
    with node:
        yield node
    assert node.leftovers() == []


def served_by(cli: CommandLine, place: Path) -> str:
    return str(found(cli, place)["served_by"])


def found(cli: CommandLine, place: Path) -> dict[str, Any]:
    """The status of the mount at a place, or of that which is bound there."""
    return next(one for one in cli.status() if str(place) in (one["mountpoint"], *one["targets"]))


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """All that stat and getxattr tell, by path. Not times of access and change, which are the file system's own business."""
    told: dict[str, tuple[object, ...]] = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)} if not path.is_symlink() else {}
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        told[str(path.relative_to(root))] = (
            *(stat.filemode(status.st_mode), size, status.st_mtime_ns, status.st_uid, status.st_gid),
            path.readlink() if path.is_symlink() else None,
            sorted(attributes.items()),
        )
    return told


def test_what_is_whole_is_shown_as_by_fuse(cli: CommandLine, whole: str, small_model: Path) -> None:
    """The same names, sizes, modes, owners, times, attributes and bytes; and it is not FUSE."""
    with cli.mounted(whole, "--native", "off", name="fuse") as by_fuse, cli.mounted(whole, name="native") as native:
        assert ["fuse", "native"] == [served_by(cli, by_fuse), served_by(cli, native)]
        assert tree(by_fuse) == tree(native)
        assert digest_tree(small_model) == digest_tree(native)
        assert os.statvfs(native).f_flag & os.ST_RDONLY


def test_a_model_that_is_not_whole_is_served_by_fuse(cli: CommandLine, reference: str) -> None:
    with cli.mounted(reference, "--prefetch", "none") as mounted:
        assert "fuse" == served_by(cli, mounted)


def test_a_strict_mount_is_served_by_fuse(cli: CommandLine, whole: str) -> None:
    """Which compares every block that it reads."""
    with cli.mounted(whole, "--verify", "strict") as mounted:
        assert "fuse" == served_by(cli, mounted)


def archive(registry: FaultyRegistry, source: Path, name: str, size: int) -> str:
    """The reference of a model of tar layers, with two files that are empty or tiny, and one of `size` bytes."""
    (source / "code" / "deep").mkdir(parents=True)
    (source / "weights.safetensors").write_bytes(os.urandom(size))
    (source / "code" / "deep" / "model.py").write_bytes(os.urandom(70_000))
    (source / "config.json").write_bytes(b"")
    (source / "code" / "run.sh").write_bytes(b"#!")
    (source / "code" / "run.sh").chmod(0o755)
    os.utime(source / "weights.safetensors", (1, 1_234_567_890))
    pack_model(source, name=name, encoding="tar").serve(registry, f"models/{name}", "1")
    return f"{registry.host}/models/{name}:1"


def copies(cli: CommandLine) -> list[dict[str, Any]]:
    return [blob for blob in json.loads(cli.do("cache", "ls", "--json").out) if blob["copy"]]


def test_small_members_of_an_archive_are_shown_natively(
    cli: CommandLine, registry: FaultyRegistry, tmp_path: Path
) -> None:
    reference = archive(registry, tmp_path / "model", "small", 2_000_000)
    cli.do("pull", reference)
    with cli.mounted(reference) as mounted:
        assert "native" == served_by(cli, mounted)
        assert digest_tree(tmp_path / "model") == digest_tree(mounted)


def test_large_members_of_an_archive_are_copied_once_and_shown_natively(
    cli: CommandLine, sandbox: Sandbox, registry: FaultyRegistry, tmp_path: Path
) -> None:
    """While it is mounted by FUSE, which goes on. The same names, sizes, modes, owners, times, attributes and bytes; status, list
    and removal tell what the copies are, and they stay while they are shown, whoever asks for their removal."""
    reference = archive(registry, tmp_path / "model", "large", 20_000_000)
    native = sandbox.directory("native")
    with cli.mounted(reference, name="fuse") as by_fuse:
        assert "fuse" == served_by(cli, by_fuse)
        until(lambda: copies(cli), "the large member is a file")
        cli.do("mount", reference, native)
        assert ["fuse", "native"] == [served_by(cli, by_fuse), served_by(cli, native)]
        assert tree(by_fuse) == tree(native)
        assert digest_tree(tmp_path / "model") == digest_tree(native) == digest_tree(by_fuse)
    assert 20_000_000 == found(cli, native)["bytes_copied"]
    (copy,) = copies(cli)
    weights = (native / "weights.safetensors").read_bytes()
    assert f"sha256:{hashlib.sha256(weights).hexdigest()}" == copy["digest"]
    assert os.getxattr(native / "weights.safetensors", "user.weightless.digest").decode() == copy["copy_of"]
    assert "20.0 MB of it copies" in cli.do("cache", "ls").error
    kill_everything(sandbox)
    assert "in use" in cli.run("cache", "rm", copy["digest"]).error
    cli.do("cache", "rm", "--all")
    assert weights == (native / "weights.safetensors").read_bytes()
    cli.do("mount", reference, native)
    assert "native" == served_by(cli, native)
    cli.do("unmount", native)
    assert [copy["digest"]] == [left["digest"] for left in copies(cli)]
    cli.do("cache", "rm", copy["copy_of"])
    assert [] == copies(cli)


def test_nothing_makes_it_writable(cli: CommandLine, sandbox: Sandbox, whole: str) -> None:
    """What container runtimes do with a volume: bind it, and remount the bind as the pod wants it."""
    with cli.mounted(whole) as mounted:
        copy = sandbox.directory("copy")
        subprocess.run(["mount", "--bind", mounted, copy], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,rw", copy], check=True)
            for change in (
                lambda: (copy / LARGE).open("r+b"),
                (copy / "new").touch,
                (copy / LARGE).unlink,
                lambda: (copy / LARGE).chmod(0o777),
                lambda: os.setxattr(copy / LARGE, "user.x", b"x"),
            ):
                with pytest.raises(OSError, match="Read-only file system"):
                    change()
            remounted = subprocess.run(["mount", "-o", "remount,rw", mounted], capture_output=True, check=False)
            assert remounted.returncode != 0
        finally:
            subprocess.run(["umount", copy], check=True)
        copy.rmdir()


def test_direct_io_and_mappings_work(cli: CommandLine, whole: str, small_model: Path) -> None:
    """As GPUDirect Storage and loaders read."""
    expected = (small_model / LARGE).read_bytes()
    with cli.mounted(whole) as mounted:
        fd = os.open(mounted / LARGE, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 1 << 20) as buffer:
                assert 1 << 20 == os.preadv(fd, [buffer], 1 << 20)
                assert expected[1 << 20 : 2 << 20] == buffer[:]
        finally:
            os.close(fd)
        with (mounted / LARGE).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            assert expected == pages[:]


def kill_everything(sandbox: Sandbox) -> None:
    for pid in sandbox.processes():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not sandbox.processes(), "all are dead")


def test_it_needs_no_process(cli: CommandLine, sandbox: Sandbox, whole: str, small_model: Path) -> None:
    """Everything of ours is killed: readers do not notice. The mount can be served again, and unmounted all the same."""
    directory = sandbox.directory("mnt")
    cli.do("mount", whole, directory)
    kill_everything(sandbox)
    assert digest_tree(small_model) == digest_tree(directory)
    assert "served again" in cli.do("mount", whole, directory).out
    assert "native" == served_by(cli, directory)
    kill_everything(sandbox)
    cli.do("unmount", directory)
    assert [] == sandbox.mounts()
    assert [] == pins(sandbox)


def pins(sandbox: Sandbox) -> list[Path]:
    return list((sandbox.cache / "objects" / "pins").iterdir())


def test_its_blobs_stay_while_it_is_mounted(cli: CommandLine, sandbox: Sandbox, whole: str) -> None:
    """Whoever asks for their removal, also while nothing of ours runs; and no longer."""
    directory = sandbox.directory("mnt")
    cli.do("mount", whole, directory)
    kill_everything(sandbox)
    assert "in use" in cli.do("cache", "rm", "--all").error
    blob = next(one for one in json.loads(cli.do("cache", "ls", "--json").out) if one["size"])
    assert (True, []) == (blob["pinned"], blob["pinned_by"])
    by_name = cli.run("cache", "rm", blob["digest"])
    assert (1, True) == (by_name.code, "in use by a mount" in by_name.error)
    assert (directory / LARGE).read_bytes()
    cli.do("unmount", directory)
    cli.do("cache", "rm", "--all")
    assert [] == json.loads(cli.do("cache", "ls", "--json").out)


def test_a_volume_published_again_is_native(
    sandbox: Sandbox, cli: CommandLine, named: str, reference: str, small_model: Path
) -> None:
    """The first pod brings it in by FUSE and goes on with that; one that comes later has the kernel's own files, and shares them
    with the next."""
    with node_with(sandbox, named) as node:
        first, second, third = (node.target(f"pod-{number}") for number in (1, 2, 3))
        node.publish("csi-1", first, {"reference": reference})
        assert "fuse" == served_by(cli, first)
        until(lambda: found(cli, first)["bytes_cached"] == found(cli, first)["bytes_total"], "it is whole")
        node.publish("csi-2", second, {"reference": reference})
        node.publish("csi-3", third, {"reference": reference})
        assert ["fuse", "native", "native"] == [served_by(cli, place) for place in (first, second, third)]
        assert digest_tree(small_model) == digest_tree(second) == digest_tree(third)
        assert found(cli, second)["mountpoint"] == found(cli, third)["mountpoint"]
        assert not node.stats("csi-2", second).volume_condition.abnormal
        node.publish("csi-2", second, {"reference": reference})  # kubelet asks again
        node.unpublish("csi-2", second)
        assert digest_tree(small_model) == digest_tree(third)
        for volume, place in (("csi-1", first), ("csi-3", third)):
            node.unpublish(volume, place)


def test_a_volume_that_wants_fuse_gets_it(sandbox: Sandbox, cli: CommandLine, named: str, whole: str) -> None:
    """Overlays cannot be id-mapped: a pod in a user namespace of its own needs FUSE."""
    with node_with(sandbox, named) as node:
        target = node.target("pod-1")
        with pytest.raises(grpc.RpcError, match="use auto or off"):
            node.publish("csi-1", target, {"reference": whole, "native": "no"})
        node.publish("csi-1", target, {"reference": whole, "native": "off"})
        assert "fuse" == served_by(cli, target)
        node.unpublish("csi-1", target)
    with node_with(sandbox, named, "--native", "off") as node:
        node.publish("csi-1", target, {"reference": whole})
        assert "fuse" == served_by(cli, target)
        node.unpublish("csi-1", target)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restarted_plugin_finds_its_native_volumes(
    sandbox: Sandbox, cli: CommandLine, named: str, whole: str, small_model: Path, how: str
) -> None:
    """Readers do not notice; each volume goes on holding the mount, and the last one takes it away."""
    with node_with(sandbox, named) as node:
        places = [node.target(f"pod-{number}") for number in (1, 2)]
        for number, place in enumerate(places):
            node.publish(f"csi-{number}", place, {"reference": whole})
        with (places[0] / LARGE).open("rb") as file:
            file.read(100)
            getattr(node, how)()
            assert digest_tree(small_model) == digest_tree(places[1])
            node.start()
            file.seek(0)
            assert (small_model / LARGE).read_bytes() == file.read()
        assert ["native"] == [one["served_by"] for one in cli.status()]
        node.unpublish("csi-0", places[0])
        assert digest_tree(small_model) == digest_tree(places[1])
        node.unpublish("csi-1", places[1])
        assert [] == cli.status()


def test_a_native_mount_that_somebody_unmounts_comes_back(
    sandbox: Sandbox, cli: CommandLine, named: str, whole: str, small_model: Path
) -> None:
    with node_with(sandbox, named) as node:
        target = node.target("pod-1")
        node.publish("csi-1", target, {"reference": whole})
        for place in (target, Path(found(cli, target)["mountpoint"])):
            subprocess.run(["umount", "--lazy", place], check=True)
        until(lambda: str(target) in sandbox.mounts(), "it is mounted again")
        assert digest_tree(small_model) == digest_tree(target)
        node.unpublish("csi-1", target)


def test_a_mount_that_somebody_unmounts_ends_its_holder(cli: CommandLine, sandbox: Sandbox, whole: str) -> None:
    directory = sandbox.directory("mnt")
    cli.do("mount", whole, directory)
    subprocess.run(["umount", directory], check=True)
    until(lambda: not sandbox.processes(), "its holder has ended")
    assert [] == pins(sandbox)


def test_where_the_kernel_cannot_it_is_fuse(sandbox: Sandbox, cli: CommandLine, whole: str, small_model: Path) -> None:
    """A cache on an overlay of two layers is one level too deep for another overlay over it."""
    layers = {name: sandbox.directory(name) for name in ("low", "up", "work", "low2", "up2", "work2", "deep", "deeper")}
    shutil.copytree(sandbox.cache, layers["low"] / "cache", symlinks=True)
    for source in (layers["low"] / "cache").rglob("*"):
        other = sandbox.cache / source.relative_to(layers["low"] / "cache")
        os.chown(source, other.stat().st_uid, other.stat().st_gid)
    os.chown(layers["low"] / "cache", sandbox.cache.stat().st_uid, sandbox.cache.stat().st_gid)
    stack = []
    try:
        for low, up, work, place in (("low", "up", "work", "deep"), ("deep", "up2", "work2", "deeper")):
            names = f"lowerdir={layers[low]},upperdir={layers[up]},workdir={layers[work]}"
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", names, layers[place]], check=True)
            stack.append(layers[place])
        deep = CommandLine(sandbox)
        deep.options = ("--cache-dir", str(layers["deeper"] / "cache"))
        with deep.mounted(whole) as mounted:
            (log,) = sandbox.run.glob("*.log")
            assert "native_mount_refused" in log.read_text()
            assert "fuse" == served_by(deep, mounted)
            assert digest_tree(small_model) == digest_tree(mounted)
    finally:
        for place in reversed(stack):
            subprocess.run(["umount", "--lazy", place], check=True)


def test_the_demo_model_is_packed_as_whole_blobs(packed: PackedModel) -> None:
    """What these tests stand on: raw layers, which are files from the first byte to the last."""
    assert all(layer["mediaType"].endswith(".raw") for layer in json.loads(packed.manifest)["layers"])
