"""The examples of docs/SEMANTICS.md, and its table of operations, as a program sees them."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.models import digest_tree
from tests.support.registry import FaultyRegistry
from tests.support.waiting import until
from weightless.demo.pack import PackedModel, pack_model

pytestmark = pytest.mark.kernel


@pytest.fixture
def mounted(cli: CommandLine, reference: str) -> Iterator[Path]:
    with cli.mounted(reference) as directory:
        yield directory


def test_the_tree_is_what_the_manifest_names(mounted: Path, small_model: Path) -> None:
    """Names, sizes, contents and implied directories are the packed ones; modes lose their write bits."""
    assert digest_tree(small_model) == digest_tree(mounted)
    for name in digest_tree(small_model):
        original, ours = (small_model / name).stat(), (mounted / name).stat()
        assert original.st_size == ours.st_size
        assert original.st_mode & 0o555 == ours.st_mode & 0o777
        assert int(original.st_mtime) == int(ours.st_mtime)
        assert (0, 0) == (ours.st_uid, ours.st_gid)
    assert 0o555 == (mounted / "weights").stat().st_mode & 0o777


def test_find_and_stat_print_what_the_page_says(cli: CommandLine, registry: FaultyRegistry, tmp_path: Path) -> None:
    """The first example, with the commands that it names."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"w" * 5000)
    pack_model(tmp_path).serve(registry, "example", "1")

    with cli.mounted(f"{registry.host}/example:1") as mnt:
        found = subprocess.run(["find", ".", "-type", "f"], cwd=mnt, capture_output=True, text=True, check=True).stdout
        assert ["./config.json", "./weights/model.safetensors"] == sorted(found.split())
        modes = subprocess.run(
            ["stat", "-c", "%a", "config.json", "weights"], cwd=mnt, capture_output=True, text=True, check=True
        ).stdout
        assert ["444", "555"] == modes.split()


WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda mnt: os.open(mnt / "config.json", os.O_WRONLY),
    "open for reading and writing": lambda mnt: os.open(mnt / "config.json", os.O_RDWR),
    "create": lambda mnt: os.open(mnt / "new", os.O_CREAT | os.O_WRONLY, 0o644),
    "truncate": lambda mnt: os.truncate(mnt / "config.json", 0),
    "mkdir": lambda mnt: (mnt / "new").mkdir(),
    "rmdir": lambda mnt: (mnt / "tokenizer").rmdir(),
    "unlink": lambda mnt: (mnt / "config.json").unlink(),
    "rename": lambda mnt: (mnt / "config.json").rename(mnt / "other.json"),
    "link": lambda mnt: os.link(mnt / "config.json", mnt / "other.json"),
    "symlink": lambda mnt: (mnt / "new").symlink_to("config.json"),
    "chmod": lambda mnt: (mnt / "config.json").chmod(0o777),
    "chown": lambda mnt: os.chown(mnt / "config.json", 1, 1),
    "utime": lambda mnt: os.utime(mnt / "config.json", (1, 1)),
    "setxattr": lambda mnt: os.setxattr(mnt / "config.json", "user.mine", b"x"),
    "removexattr": lambda mnt: os.removexattr(mnt / "config.json", "user.weightless.digest"),
    "mknod": lambda mnt: os.mknod(mnt / "new", 0o644),
}


@pytest.mark.parametrize("operation", WRITES)
def test_every_attempt_to_write_is_erofs(mounted_once: Path, operation: str) -> None:
    """Also for root."""
    with pytest.raises(OSError) as caught:
        WRITES[operation](mounted_once)
    assert errno.EROFS == caught.value.errno


@pytest.fixture(scope="module")
def mounted_once(packed: PackedModel) -> Iterator[Path]:
    """One mount for the whole table of writes, none of which may change it."""
    from tests.support.leaks import sandbox

    with sandbox() as place, FaultyRegistry() as registry:
        packed.serve(registry, "models/small", "1.0")
        with CommandLine(place).mounted(f"{registry.host}/models/small:1.0") as directory:
            before = digest_tree(directory)
            yield directory
            assert before == digest_tree(directory)


def test_extended_attributes_say_where_a_file_comes_from(mounted: Path, packed: PackedModel) -> None:
    """The digest of a raw layer is that of the file's bytes; the root has the manifest's."""
    path = mounted / "weights" / "model-00001-of-00003.safetensors"
    names = os.listxattr(path)

    assert {"user.weightless.digest", "user.weightless.media-type", "user.weightless.offset"} <= set(names)
    digest = os.getxattr(path, "user.weightless.digest").decode()
    assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest
    assert b"application/vnd.cncf.model.weight.v1.raw" == os.getxattr(path, "user.weightless.media-type")
    assert b"0" == os.getxattr(path, "user.weightless.offset")
    assert str(packed.digest) == os.getxattr(mounted, "user.weightless.artifact").decode()
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "user.other")
    assert errno.ENODATA == caught.value.errno


def test_statfs_tells_the_size_and_no_free_space(mounted: Path, small_model: Path) -> None:
    """`df` shows a full file system of the artifact's size."""
    told = os.statvfs(mounted)
    files = [path for path in small_model.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)

    assert 0 == told.f_bavail == told.f_ffree
    assert size <= told.f_blocks * told.f_frsize < size + 1024 * 1024
    assert told.f_files >= len(files)


MAP = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    print(hashlib.sha256(mapped).hexdigest())
"""


def test_a_file_may_be_mapped_and_read_beyond_its_end(mounted: Path, small_model: Path) -> None:
    """mmap gives the file's bytes; reads at and behind the end give nothing."""
    name = "weights/model-00003-of-00003.safetensors"
    content = (small_model / name).read_bytes()
    # In a process of its own: a page fault holds the interpreter lock, and here is the registry that has to answer it.
    mapped = subprocess.run(
        [sys.executable, "-c", MAP, str(mounted / name)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert hashlib.sha256(content).hexdigest() == mapped.strip()
    with (mounted / name).open("rb") as file:
        assert content[-10:] == os.pread(file.fileno(), 100, len(content) - 10)
        assert b"" == os.pread(file.fileno(), 100, len(content))
        assert b"" == os.pread(file.fileno(), 100, len(content) + 10**9)


def test_metadata_never_waits_for_the_registry(cli: CommandLine, registry: FaultyRegistry, reference: str) -> None:
    """With every blob request hanging, listing, stat and open answer."""
    with cli.mounted(reference, "--prefetch", "none") as mnt:
        registry.script("blob", "hang", forever=True)
        names = sorted(path.name for path in mnt.iterdir())
        with (mnt / "weights" / "model-00001-of-00003.safetensors").open("rb") as file:
            assert 8 * 1024 * 1024 == os.fstat(file.fileno()).st_size
        assert ["config.json", "empty.txt", "tokenizer", "weights"] == names
        registry.clear_scripts()
        registry.release()


def test_a_temporary_fault_makes_a_read_wait_and_not_fail(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path
) -> None:
    """503 for as long as we look, then recovery: the reader gets the right bytes, late; status says why it waited."""
    with cli.mounted(reference, "--prefetch", "none") as mnt:
        registry.script("blob", "503", forever=True)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append((mnt / "config.json").read_bytes()), daemon=True)
        reader.start()

        def degraded() -> bool:
            (status,) = cli.status()
            return bool(status["waiting"] and status["condition"]["state"] == "degraded")

        until(degraded, "status tells that a read waits")
        assert not got
        registry.clear_scripts()
        reader.join(30)
        assert [(small_model / "config.json").read_bytes()] == got


def test_wrong_bytes_are_eio_and_never_seen(cli: CommandLine, registry: FaultyRegistry, reference: str) -> None:
    """A registry that corrupts a small file: the reader gets EIO, not a wrong byte."""
    with cli.mounted(reference, "--prefetch", "none") as mnt:
        registry.script("blob", "corrupt", forever=True)
        with pytest.raises(OSError) as caught:
            (mnt / "config.json").read_bytes()
        assert errno.EIO == caught.value.errno


def test_a_blob_that_is_gone_is_eio(
    cli: CommandLine, registry: FaultyRegistry, reference: str, packed: PackedModel, small_model: Path
) -> None:
    """404 cannot heal: the read fails at once, and other files still read."""
    from fuse.artifact.digest import Digest

    registry.remove_blob(Digest.of((small_model / "tokenizer" / "merges.txt").read_bytes()))
    with cli.mounted(reference, "--prefetch", "none") as mnt:
        with pytest.raises(OSError) as caught:
            (mnt / "tokenizer" / "merges.txt").read_bytes()
        assert errno.EIO == caught.value.errno
        assert (small_model / "config.json").read_bytes() == (mnt / "config.json").read_bytes()


def test_a_tag_that_moves_moves_nothing_that_is_mounted(
    cli: CommandLine, registry: FaultyRegistry, reference: str, small_model: Path, tmp_path: Path
) -> None:
    """The old mount keeps its files; a new mount of the tag shows the new ones."""
    with cli.mounted(reference, name="old") as old:
        (tmp_path / "only.txt").write_text("new")
        pack_model(tmp_path).serve(registry, "models/small", "1.0")
        with cli.mounted(reference, name="new") as new:
            assert ["only.txt"] == os.listdir(new)
            assert digest_tree(small_model) == digest_tree(old)


def test_a_waiting_reader_can_be_killed(cli: CommandLine, registry: FaultyRegistry, reference: str) -> None:
    """SIGKILL ends a reader whose bytes never come, and the mount can be unmounted then."""
    with cli.mounted(reference, "--prefetch", "none") as mnt:
        registry.script("blob", "hang", forever=True)
        reader = subprocess.Popen(["cat", str(mnt / "config.json")], stdout=subprocess.PIPE)
        until(lambda: cli.status()[0]["waiting"], "the read waits")
        reader.kill()
        reader.communicate(timeout=10)
        assert -9 == reader.returncode
    registry.release()
